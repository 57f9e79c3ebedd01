"The student's copies: nothing of the answers, all of the checks, nobody's work lost."
import ast, json

import pytest

import house
from dh_nb import cli
from dh_nb.data import BadInput, notebook, notebook_folder
from dh_nb.student import lessons, split_solution, student_copy, stub, write_copies


FULL = lessons()


def code(nb): return [c for c in nb["cells"] if c["cell_type"] == "code"]


def text(cell): return "".join(cell["source"])


def solutions(nb):
    return [c for c in code(nb) if "solution" in c["metadata"].get("tags", [])]


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("class") / "lessons"
    return {p.name: json.loads(p.read_text(encoding="utf-8")) for p in write_copies(folder)}


def test_the_rows_that_lessons_read_are_copied(tmp_path):
    write_copies(tmp_path / "class")
    rows = lambda folder: {p.name for p in folder.iterdir() if p.suffix in (".csv", ".jsonl")}
    assert rows(tmp_path / "class" / "results") == rows(house.ROOT / "results")
    assert "reference.csv" in rows(house.ROOT / "results")


def test_every_room_is_copied(copies):
    "Also those with nothing to solve: links lead to them."
    assert set(copies) == {f"{r.name}.ipynb" for r in house.ALL}


@pytest.mark.parametrize("name", sorted(FULL))
def test_a_copy_keeps_all_but_the_answers(name, copies):
    full, copy = FULL[name], copies[name]
    assert len(full["cells"]) == len(copy["cells"])
    assert all(c["outputs"] == [] and c["execution_count"] is None for c in code(copy))
    for a, b in zip(full["cells"], copy["cells"]):
        if a in solutions(full): continue
        assert text(b).startswith(text(a).replace('"../results', '"results'))
    for a, b in zip(solutions(full), solutions(copy)):
        work, checks = split_solution(text(a))
        left = ast.parse(text(b)).body
        imports = [n for n in work if isinstance(n, (ast.Import, ast.ImportFrom))]
        assert [*map(ast.unparse, left)] == [*map(ast.unparse, imports + checks)]
        assert "# Your turn" in text(b)


def test_every_solution_leaves_a_check_that_runs():
    bare = [(name, text(c)) for name, nb in FULL.items() for c in solutions(nb)
            if not split_solution(text(c))[1]]
    assert not bare


@pytest.mark.parametrize("source, says", [
    ("x = 2\nassert x == 2", "# Your turn; the check reads x.\n\n\nassert x == 2"),
    ("import os\nx = 1", "import os\n# Your turn.\n\n"),
    ("#| slow\nx = 1\nassert x", "#| slow\n# Your turn; the check reads x.\n\n\nassert x"),
    ("n = [a for a in (1, 2)]\nassert all(a in n for a in (1, 2))",
     "# Your turn; the check reads n.\n\n\nassert all(a in n for a in (1, 2))"),
    ("for i in (1, 2):\n    y = i\n    assert y", "# Your turn.\n# This shall hold: y\n\n"),
    ("!ls\nx = 1\ntorch.testing.assert_close(x, x)",
     "# Your turn; the check reads x.\n\n\ntorch.testing.assert_close(x, x)"),
    ("def f():\n    return 1\n\n\nfor i in (1,): assert f() == i",
     "# Your turn; the check reads f.\n\n\nfor i in (1,): assert f() == i"),
])
def test_stubs(source, says): assert stub(source) == says


def test_an_unsolved_exercise_stops_at_its_check_and_a_solved_one_passes():
    source = "n = 3\nassert n == 3"
    with pytest.raises(NameError): exec(stub(source), {})
    exec(stub(source).replace("\n\n\n", "\nn = 3\n"), {})


def test_a_copy_does_not_touch_its_source():
    nb = FULL["01_data.ipynb"]
    before = json.dumps(nb)
    student_copy(nb)
    assert json.dumps(nb) == before


def call(*args):
    try: cli.student([str(a) for a in args])
    except SystemExit as e: return e.code or 0
    return 0


def test_nothing_is_overwritten(tmp_path, capsys):
    mine = tmp_path / "class" / "21_lfc.ipynb"
    mine.parent.mkdir()
    mine.write_text("my answers")
    assert call(tmp_path / "class") == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.strip().splitlines()) == 1 and "21_lfc.ipynb" in err
    assert list(mine.parent.iterdir()) == [mine] and mine.read_text() == "my answers"
    assert call(tmp_path / "class", "--force") == 0 and mine.read_text() != "my answers"


def test_bad_targets_get_one_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file", notebook_folder(), tmp_path / "file" / "below", None):
        assert call(*[target] * (target is not None), "--force") == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_notebook_by_name():
    assert notebook("01_data").is_file()
    for wrong in ("none", "../README", ""):
        with pytest.raises(BadInput): notebook(wrong)
