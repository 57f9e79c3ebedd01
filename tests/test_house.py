"Every room keeps the conventions, and every rule can fail."
import json, re, subprocess, sys
from textwrap import dedent

import pytest

import house

GOOD = """
# A toy
> One line on what it is for.
---
You will be able to halve a number. Needs: nothing. Takes: 2 minutes to read, 1 s to run.
---
#| default_exp toy
---
#| export
import math
---
Halving, in words, and why somebody would want to do it at all.
$$ x / 2^n $$
---
#| export
def half(
    x: float,  # any number
    n: int = 1,  # how often
) -> float:  # `x` after `n` halvings
    "Half of a number, `n` times."
    return x / 2**n
---
assert half(4) == 2
---
There you see it: a four goes in, and what comes out is as long as a two would be.
---
## Summary
---
## Exercises
<details><summary>Hint</summary>

One.

</details>
---solution
assert half(2) == 1
---
<details><summary>Hint</summary>

Two.

</details>
---solution
assert half(2, 2) == 0.5
---
<details><summary>Hint</summary>

Three.

</details>
---solution
assert half(0) == 0
---
## Where next
---
## References
"""


def parse(text, name="09_toy"):
    "The toy room: cells between `---`, markdown where it reads as prose."
    cells, seen = [], {"data": {"image/png": ""}}
    for i, part in enumerate(text.strip().split("\n---")):
        tag, _, source = part.partition("\n") if i else ("", "", part)
        code = source.startswith(("#|", "assert", "import", "from"))
        kind = "code" if code else "markdown"
        shown = [seen] if source.startswith("assert half(4)") else []
        cells.append(house.Cell(i, kind, source, [tag] if tag else [], shown))
    return house.Room(name, cells, {}, len(text))


def change(old, new, name="09_toy"):
    assert old in GOOD
    return parse(GOOD.replace(old, dedent(new), 1), name)


def outputs(*out):
    room = parse(GOOD)
    room.cells[6].outputs = list(out)
    return room


def more(text): return change("---\n## Summary", "---\n" + text + "\n---\n## Summary")


def export(text): return more("#| export\n" + text + "\n---\nassert True")


def long_function(lines): return "def f():\n    'Long.'\n" + "    print()\n" * lines


def no_picture():
    room = parse(GOOD)
    for c in room.cells: c.outputs = []
    return room


def heavy():
    room = parse(GOOD)
    room.size = house.BYTES + 1
    return room


def widgets():
    room = parse(GOOD)
    room.metadata = {"widgets": {}}
    return room


def gallery(text):
    "The same lesson without a module."
    text = text.replace("#| default_exp toy\n---\n#| export\nimport math",
                        "from dh_nb.zoo import ape")
    return text.replace("#| export", "#| hide")


BAD = {
    "known_name": [parse(GOOD, "9_toy"), parse(GOOD, "09-toy")],
    "opening": [change("# A toy", "## A toy"), change("> One", "One"),
                change("> One", "> One\n> Two")],
    "goals": [change("You will be able to", "Learn to"), change("Needs:", "With:"),
              change("Takes: 2 minutes", "A minute")],
    "everywhere": [change("## Summary", "[](08_nets.ipynb)\n\n## Summary"),
                   change("## Summary", ":::{note}\nWell.\n:::\n\n## Summary"),
                   change("## Summary", "As {eq}`eq-toy` says.\n\n## Summary")],
    "ending": [change("## Summary", "## Sum"), change("## References", "## More"),
               change("## Where next", "## Summary"),
               change("<summary>Hint</summary>\n\nOne.", "One."),
               change("---solution", "---"),
               change("assert half(2) == 1", "#| hide\nhalf(2)"),
               parse(gallery(GOOD).split("---\n## Where next")[0], "72_free"),
               parse(gallery(GOOD).replace("---\n## Summary", "---\n## More"), "72_free")],
    "minutes": [change("Takes: 2 minutes", "Takes: a moment"),
                change("Takes: 2 minutes", "Takes: 9 minutes"),
                change("---\n## Summary", "---\n" + "word " * 900 + "\n---\n## Summary")],
    "skeleton": [change("$$ x / 2^n $$\n", ""), change("assert half(4)", "half(4)"),
                 change("Halving, in words, and why somebody would want to do it at all.",
                        "Halving."), no_picture()],
    "reading": [change("There you see it: a four goes in, and what comes out is as long "
                       "as a two would be.", "There."),
                change("There you see it: a four goes in, and what comes out is as long "
                       "as a two would be.", "There you see what comes out of it.")],
    "plain_outputs": [
        widgets(), outputs({"output_type": "error"}),
        outputs({"name": "stderr", "text": "x"}),
        outputs({"data": {"application/vnd.jupyter.widget-view+json": {}}})],
    "small": [heavy()],
    "no_home": [more("See `/home/ann/pictures`."),
                *(more(f"{how}('/{top}/x')") for top in ("root", "work")
                  for how in ("Kept in ", "import os\nos.stat")),
                outputs({"text": "saved to /Users/ann/x.png"})],
    "directives": [more("#| exports\n1"), more("#| eval:true\n1"),
                   more("#| export data\n1"), more("assert True\n#| slow")],
    "waiting": [more("#| slow\nassert True"), more("#| slow\n# soon\nassert True")],
    "parses": [more("assert half(")],
    "module": [change("#| default_exp toy\n---\n", ""), parse(GOOD, "09_boy"),
               change("---\n#| default_exp", "---\nMore.\n---\n#| default_exp")],
    "imports": [change("import math", "import math\nx = 1"), export("import ast"),
                more("from math import *")],
    "floors": [more("from dh_nb.zoo import ape"), more("import dh_nb.zoo.apes"),
               more("from dh_nb import zoo"), more("from .zoo import ape")],
    "for_readers": [more("import fastcore.all"), more("from IPython import display"),
                    change("import math", "import math, nbdev"),
                    change("import math", "import matplotlib.pyplot as plt")],
    "rhythm": [change("assert half(4) == 2", "A.\n---\nB.\n---\nC."),
               change("assert half(4)", "A.\n---\n#| eval: false\nhalf(4)\n---\nC.")],
    "line_width": [more("#| hide\n" + "x" * 89)],
    "length": [export(long_function(26)),
               export("class A:\n    'A.'\n" + "    x = 1\n" * 41)],
    "docments": [change("  # any number", ""), change("  # how often", ""),
                 change("  # `x` after `n` halvings", ""), change(" -> float", ""),
                 change('    "Half of a number, `n` times."\n', ""),
                 change("Half of a number, `n` times.", '""Half.\n\n    More.""'),
                 change("# any number\n    n", "n"),
                 export("class A:\n    def f(self):\n        'F.'"),
                 export("class A:\n    'A.'\n    def __init__(self, x):\n        pass"),
                 export("@dataclass\nclass A:\n    'A.'\n    x: int = 0")],
}


DOCS = """def half(x: float, n: int = 1) -> float:
    \'\'\'Half of a number.

    Args:
        x: any number.
        n: how often.

    Returns:
        `x` after `n` halvings.

    Raises:
        BadInput: nothing is there.

    Example:
        >>> half(4)
        2.0
    \'\'\'
    if x is None: raise BadInput("Nothing is there.")
    return x / 2**n"""
FRONT = GOOD.replace(GOOD[GOOD.index("def half("):GOOD.index("\n---\nassert half(4)")], DOCS)
BAD["front_door"] = [parse(FRONT.replace(part, "")) for part in (
    "        n: how often.\n", "    Returns:\n", "    Raises:\n", "    Example:\n",
    "        >>> half(4)\n")]


@pytest.fixture(autouse=True)
def door(monkeypatch):
    "The front door has one function more, which no toy but that of its rule defines so."
    monkeypatch.setitem(house.PUBLIC, "half", "elsewhere")


def test_the_front_door_is_told_in_its_docstring_alone(zoo, monkeypatch):
    assert "docments" in str(house.check(parse(FRONT)))
    monkeypatch.setitem(house.PUBLIC, "half", "toy")
    assert house.check(parse(FRONT)) == []


@pytest.fixture
def zoo(monkeypatch):
    "Only two rooms in the house: the toy and, above it, a zoo."
    above = parse(GOOD.replace("exp toy", "exp zoo"), "10_zoo")
    monkeypatch.setattr(house, "ALL", [parse(GOOD), above])


def test_the_good_toy_keeps_every_rule(zoo): assert house.check(parse(GOOD)) == []


def test_each_rule_has_its_bad_toys(): assert BAD.keys() == house.RULES.keys()


@pytest.mark.parametrize("name,room", [(n, r) for n in BAD for r in BAD[n]])
def test_each_rule_can_fail(name, room, zoo, monkeypatch):
    if name == "front_door": monkeypatch.setitem(house.PUBLIC, "half", "toy")
    assert list(house.RULES[name](room))


def test_rooms_without_a_module_are_free_of_export_rules(zoo):
    assert house.check(parse(gallery(GOOD), "72_free")) == []


@pytest.mark.parametrize("room", house.ALL, ids=lambda r: r.name)
def test_room_keeps_the_conventions(room):
    said = house.check(room)
    if said: pytest.fail(f"{room.name}:\n" + "\n".join(said), pytrace=False)


def test_no_two_rooms_share_a_number():
    numbers = [r.number for r in house.ALL]
    assert numbers == sorted(set(numbers))


COURSE = (house.ROOT / "nbs" / "course.md").read_text(encoding="utf-8")
LINK = r"\((\d\d_[\w.]+)\.ipynb\)"


def course_faults(text):
    "What is wrong with the table of sessions: minutes, needs that come late, long classes."
    sessions = re.findall(r"^\| \d\. .*\|$", text, re.M)
    place = {name: i for i, name in enumerate(re.findall(LINK, "\n".join(sessions)))}
    said = {r.name: r.cells[1].source for r in house.ALL}
    for name, n in re.findall(LINK + r", (\d+) min", text):
        if f"Takes: {n} minutes" not in said[name]: yield f"{name} does not take {n}"
    for name in place.keys() - {"80_explorers"}:  # looked at, not read, before its turn
        needs = re.findall(LINK, said[name].partition("Needs:")[2])
        for n in needs:
            if place.get(n, 99) > place[name]: yield f"{name} comes before {n}"
    for line in sessions:
        long = sum(map(int, re.findall(r", (\d+) min", line.split("|")[4])))
        if long > 90: yield f"{long} minutes in class: {line[:30]}"


def test_the_course_is_in_order(): assert not list(course_faults(COURSE))


@pytest.mark.parametrize("old, new, fault", [
    ("(00_tour.ipynb), 15", "(00_tour.ipynb), 16", "does not take 16"),
    ("| [21_lfc]", "| [40_victim](40_victim.ipynb), 60 min; [21_lfc]", "110 minutes"),
    ("62_bench", "00_tour", "63_scorecard comes before 62_bench")])
def test_a_course_out_of_order_is_noticed(old, new, fault):
    assert old in COURSE
    assert any(fault in s for s in course_faults(COURSE.replace(old, new)))


def test_the_checker_is_a_command(tmp_path):
    nb = {"cells": [{"cell_type": "code", "source": "import fastcore", "metadata": {}}],
          "metadata": {}}
    (tmp_path / "01_bad.ipynb").write_text(json.dumps(nb))
    run = [sys.executable, house.__file__, str(tmp_path / "01_bad.ipynb")]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 1 and "do without `fastcore`" in done.stdout


def test_ruff_finds_nothing():
    picks = ["--select", "E9,F63,F7,F82,B,PLE,NPY", "--ignore", "B905", "--no-cache"]
    run = [sys.executable, "-m", "ruff", "check", "nbs", "tests", "setup.py", *picks]
    done = subprocess.run(run, cwd=house.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
