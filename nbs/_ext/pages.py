"""What Sphinx does not know about this house.

A notebook becomes a page (`page`), a marker in a text file becomes a list of rooms or a
plan (`MARKERS`), comments on names and parameters become the reference (`entry`), and an
explorer becomes frames that need no kernel (`Frames`).
"""
import ast
import base64
import importlib
import inspect
import io
import json
import re
import warnings
from html import escape
from pathlib import Path

from docutils import nodes
from PIL import Image
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import stringify_annotation

NBS = Path(__file__).resolve().parent.parent
LIB = "dh_nb"
FLOORS = ["tools", "hiding", "features", "making", "victims", "countermeasures",
          "judging", "results", "seeing", "doors"]
EXTRAS = {20: "features", 21: "features", 30: "features", 31: "diffusion", 54: "diffusion",
          55: "diffusion", 62: "bench", 64: "bench", 80: "features"}
TAGS = {"hide": "remove-cell", "slow": "skip-execution", "gpu": "skip-execution",
        "eval: false": "skip-execution"}


# ---- the rooms ----

def text(cell): return "".join(cell["source"])


def rooms():
    "(name, number, module or None, title, motto) of every notebook."
    for path in sorted(NBS.glob("[0-9][0-9]_*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        first, second = text(cells[0]).splitlines(), text(cells[2])
        mark = re.match(r"#\| default_exp (\S+)", second)
        motto = next((s[1:].strip() for s in first if s.startswith(">")), "")
        yield (path.stem, int(path.stem[:2]), mark and mark[1], first[0].lstrip("# "),
               motto)


ROOMS = list(rooms())
HOME = {f"{LIB}.{module}": name for name, _, module, *_ in ROOMS if module}


def assigned(source):
    "Constant -> the comment on its first or last line, of what code assigns at its top."
    rows, found = source.splitlines(), {}
    for n in ast.parse(source).body:
        if not isinstance(n, (ast.Assign, ast.AnnAssign)): continue
        ends = rows[n.lineno - 1], rows[n.end_lineno - 1]
        said = next((m[1] for r in ends if (m := re.search(r"  # (.+)$", r))), "")
        for target in getattr(n, "targets", None) or [n.target]:
            if isinstance(target, ast.Subscript): continue
            found |= {t.id: said for t in ast.walk(target) if isinstance(t, ast.Name)
                      and t.id.isupper() and t.id[0] != "_"}
    return found


def file_of(module):
    "The file of a module of the library."
    return NBS.parent.joinpath(*module.split(".")).with_suffix(".py")


def constants(module):
    "Those of a module of the library."
    return assigned(file_of(module).read_text(encoding="utf-8"))


def symbols():
    "Short name -> {module: full name}, from nbdev's index; constants from the modules."
    known = {}
    for module, names in importlib.import_module(f"{LIB}._modidx").d["syms"].items():
        if module not in HOME: continue
        for full in [*names, *(f"{module}.{c}" for c in constants(module))]:
            known.setdefault(full[len(module) + 1:], {})[module] = full
    return known


SYMBOLS = symbols()


def full_name(name, module=None):
    "What a short name in backticks means in a room; None where that is not clear."
    known = SYMBOLS.get(name, {})
    return known.get(module) or (next(iter(known.values())) if len(known) == 1 else None)


# ---- a notebook becomes a page ----

def for_site(words):
    "Plain Markdown with what Sphinx adds: titles of links, numbers of formulas, folds."
    words = re.sub(r"\[([\w.]+)\]\((\1\.(?:ipynb|md))", r"[](\2", words)
    words = re.sub(r"(?<!\$ )\((eq-[\w-]+)\)", r"{eq}`\1`", words)
    return re.sub(r"<details><summary>(.*?)</summary>\n\n(.*?)\n\n</details>",
                  r":::{dropdown} \1\n\2\n:::", words, flags=re.S)


def link_names(source, module):
    "Names in backticks link to the reference; code fences, headings and links stay."
    def link(m):
        full = full_name(m[1], module)
        return f"{{py:obj}}`{m[1]} <{full}>`" if full else m[0]
    fenced, out = False, []
    for line in source.splitlines():
        if line.lstrip().startswith(("```", "~~~")): fenced = not fenced
        elif not fenced and not line.startswith("#"):
            line = re.sub(r"(?<![`}\w\[])`([A-Za-z_][\w.]*)`(?![`\]])", link, line)
        out.append(line)
    return "\n".join(out)


def described(output):
    "The text alternative that `png_bytes` left inside a picture."
    data = output.get("data", {}).get("image/png")
    if not data: return ""
    image = Image.open(io.BytesIO(base64.b64decode("".join(data))))
    image.load()
    return getattr(image, "text", {}).get("Description", "")


def plain(markdown):
    "The last sentence of a text without its marks."
    words = re.sub(r"\$[^$]*\$|[`*_#>\[\]]|\(\S+\)", "", markdown).split()
    return re.split(r"(?<=[.:!?]) ", " ".join(words))[-1][:200]


def alternative(cell, before, heading):
    "What the pictures of a cell show, for those who cannot see them."
    told = " ".join(filter(None, map(described, cell.get("outputs", []))))
    return told or f"{heading}: {plain(before)}".strip(": ")


def code_cell(cell, alt):
    "Directives become tags of the page, solutions fold, pictures get their words."
    marks = [re.sub(r"\s*:\s*", ": ", s[2:].strip())
             for s in text(cell).splitlines() if s.startswith("#|")]
    tags = set(cell["metadata"].get("tags", [])) | {TAGS[m] for m in marks if m in TAGS}
    if any(m.startswith("default_exp") for m in marks): tags.add("remove-cell")
    if "solution" in tags: tags.add("hide-cell")
    lines = [s for s in text(cell).splitlines() if not s.startswith("#|")]
    cell["source"] = "\n".join(lines).strip("\n")
    cell["metadata"] = {"tags": sorted(tags), "mystnb": {"image": {"alt": alt}}}


def anchors(cell, module):
    "A place to land for each name that an exported cell defines."
    names = re.findall(r"^(?:def|class) (\w+)", text(cell), re.M)
    names += assigned(text(cell))
    spots = [f'<span id="def-{n}" class="landing"></span>' for n in names
             if full_name(n, module)]
    return dict(cell_type="markdown", id=f"at-{names[0]}"[:64], metadata={},
                source="".join(spots)) if spots else None


def repository(config):
    "Its address, and the branch that readers get."
    return [config.html_theme_options[f"repository_{k}"] for k in ("url", "branch")]


def doors(name, number, config):
    "Where a lesson runs without an installation, and the cell that it then needs."
    repo, branch = repository(config)
    short = repo.removeprefix("https://github.com/")
    extra = f"[{EXTRAS[number]}]" if number in EXTRAS else ""
    colab = f"https://colab.research.google.com/github/{short}/blob/{branch}/nbs/{name}.ipynb"
    binder = f"https://mybinder.org/v2/gh/{short}/{branch}?labpath=nbs%2F{name}.ipynb"
    return f"""
:::{{dropdown}} Run this lesson
:class-container: doors
Open it on [Binder]({binder}), where everything is installed, or in [Colab]({colab}), and run this cell first:
```ipython3
from pathlib import Path
if not Path("../results").exists():  # Colab opens a lesson without its house
    !git clone -q --depth 1 -b {branch} {repo} /content/house
    %cd /content/house/nbs
%pip install -q "..{extra}"
```
At home: `git clone {repo}`, then `pip install -e '.[{",".join(["lab", *extra.strip("[]").split()])}]'` and `jupyter lab nbs/{name}.ipynb`.
:::
"""


def page(name, source, config):
    "A notebook as Sphinx shall read it."
    nb = json.loads(source)
    number, module = next((n, m) for r, n, m, *_ in ROOMS if r == name)
    module, before, heading, cells = module and f"{LIB}.{module}", "", "", []
    for i, cell in enumerate(nb["cells"]):
        if cell["cell_type"] == "code":
            if "#| export" in text(cell) and (spot := anchors(cell, module)):
                cells.append(spot)
            code_cell(cell, alternative(cell, before, heading))
        else:
            before = text(cell)
            heading = (re.findall(r"^#+ (.*)", before, re.M) or [heading])[-1]
            cell["source"] = link_names(for_site(before), module)
            if i == 1: cell["source"] += "\n" + doors(name, number, config)
        cells.append(cell)
    return json.dumps({**nb, "cells": cells})


# ---- the floor plan ----

BOX, ROW, ACROSS, WIDE = 133, 46, 3, 457


def label(name):
    "SVG of the last part of a room's name, pressed together where it is long."
    words = name[3:].split(".")[-1].removeprefix("results_").replace("_", " ")
    fit = ' textLength="94" lengthAdjust="spacingAndGlyphs"' * (len(words) > 12)
    return f"{fit}>{escape(words)}</text>"


def floor_band(floor, here, bottom):
    "SVG of one floor whose lower edge is at `bottom`, and the height of it."
    rows = [here[i:i + ACROSS] for i in range(0, len(here), ACROSS)]
    high = 26 + ROW * len(rows)
    out = [f'<g class="floor f{floor}"><rect class="band" x="12" y="{bottom - high}" '
           f'width="{WIDE - 24}" height="{high}"/><text class="storey" x="24" '
           f'y="{bottom - high + 18}">{floor} {FLOORS[floor]}</text>']
    for r, row in enumerate(rows):
        for c, (name, number, module, title, motto) in enumerate(row):
            x, y = 24 + c * (BOX + 5), bottom - high + 24 + r * ROW
            out.append(
                f'<a href="{name}.html" aria-label="{number:02} {escape(title)}">'
                f'<title>{escape(title)}. {escape(motto)}</title>'
                f'<rect class="room{"" if module else " gallery"}" x="{x}" y="{y}" '
                f'width="{BOX}" height="{ROW - 8}" rx="5"/>'
                f'<text class="number" x="{x + 9}" y="{y + 24}">{number:02}</text>'
                f'<text class="name" x="{x + 32}" y="{y + 24}"{label(name)}</a>')
    return "".join(out) + "</g>", high


def plan():
    "The house as one SVG: floors from the ground up, every room a link."
    bands, total = [], 0
    for floor in sorted({r[1] // 10 for r in ROOMS}):
        band, high = floor_band(floor, [r for r in ROOMS if r[1] // 10 == floor], -total)
        bands.append(band)
        total += high
    roof = f"0,{-total} {WIDE / 2},{-total - 54} {WIDE},{-total}"
    return (f'<svg class="plan" viewBox="0 {-total - 58} {WIDE} {total + 64}" '
            'role="group" aria-label="Floor plan: every room of the house is a link to '
            'its lesson, the lowest floor is where to begin">'
            f'<polygon class="roof" points="{roof}"/>{"".join(bands)}'
            f'<line class="ground" x1="0" x2="{WIDE}" y1="2" y2="2"/></svg>')


# ---- markers in text files ----

def raw(html): return f"```{{raw}} html\n{html}\n```\n"


def tree(caption, names):
    "A hidden table of contents, for the side bar."
    body = "\n".join(names)
    return f"```{{toctree}}\n:caption: {caption}\n:hidden:\n\n{body}\n```\n"


def lessons():
    "One table of contents a floor."
    floors = sorted({r[1] // 10 for r in ROOMS})
    return "\n".join(tree(FLOORS[f].capitalize(), [r[0] for r in ROOMS if r[1] // 10 == f])
                     for f in floors)


def room_table(keep):
    "A list of rooms with what each is for."
    return "\n".join(f"- [{title}]({name}.ipynb): {motto}"
                     for name, number, _, title, motto in ROOMS if keep(number))


def front_door():
    "What `dh_nb` itself exports, with the first line that it says of itself."
    def row(name, module):
        tree = ast.parse(file_of(module).read_text(encoding="utf-8"))
        node, = [n for n in tree.body if getattr(n, "name", "") == name]
        words = ast.get_docstring(node).splitlines()[0]
        home = HOME[module]
        return f"| {{py:obj}}`dh_nb.{name} <{module}.{name}>` | {words} | [{home}](../{home}.ipynb) |"
    public = importlib.import_module(LIB).PUBLIC
    rows = "\n".join(row(name, f"{LIB}.{module}") for name, module in public.items())
    return f"| name | what it is for | room |\n| --- | --- | --- |\n{rows}\n"


def module_table():
    "Modules with what each is for, and the tree of their pages."
    rows = "\n".join(f"| [`{m}`]({m}.md) | {motto} | [{name}](../{name}.ipynb) |"
                     for name, _, m, _, motto in ROOMS if m)
    names = "\n".join(f"{m.split('.')[-1]} <{m}>" for _, _, m, *_ in ROOMS if m)
    return (f"| module | what it is for | room |\n| --- | --- | --- |\n{rows}\n\n"
            f"```{{toctree}}\n:hidden:\n\n{names}\n```\n")


def readme(config):
    "README.md with the links of a site, and the plan in place of its list of rooms."
    repo, branch = repository(config)
    blob = f"{repo}/blob/{branch}/"
    words = (NBS.parent / "README.md").read_text(encoding="utf-8")
    words = re.sub(r"\]\(nbs/([^)#]+)", r"](\1", words).replace("](images/", "](../images/")
    words = re.sub(r"\]\((nbs|results|NOTICE|LICENSE|[A-Z]+\.md)\)", rf"]({blob}\1)", words)
    words = re.sub(r"^## Read it as a site.*?(?=^## )", "", words, flags=re.M | re.S)
    words = re.sub(r"^\| floor \|.*?\n\n", raw(plan()) + "\n", words, flags=re.M | re.S)
    head, *parts = re.split(r"^(?=## )", words, flags=re.M)
    order = sorted(parts, key=lambda p: not p.startswith("## The rooms"))
    return head + "".join(order)


MARKERS = {"readme": readme, "lessons": lambda _: lessons(),
           "modules": lambda _: module_table(), "front door": lambda _: front_door(),
           "results": lambda _: room_table(lambda n: n // 10 == 7)}


def read(app, name, source):
    "Before Sphinx parses a page."
    if any(r[0] == name for r in ROOMS):
        source[0] = page(name, source[0], app.config)
    elif not name.startswith("api/"): source[0] = for_site(source[0])
    for marker, make in MARKERS.items():
        if (mark := f"<!-- {marker} -->") in source[0] and not name[0].isdigit():
            source[0] = source[0].replace(mark, make(app.config))


# ---- the reference ----

def rst(words):
    "A comment in Markdown as reStructuredText: code stays code, the rest is plain."
    parts = words.split("`")
    for i, part in enumerate(parts):
        if i % 2:
            full = full_name(part)
            parts[i] = f":py:obj:`{part} <{full}>`" if full else f"``{part}``"
        else: parts[i] = re.sub(r"([\\*|_])", r"\\\1", part)
    return "".join(parts)


def docstring(lines):
    "Words as reStructuredText; names of fields, directives and examples stay."
    example = False
    for s in "\n".join(lines).splitlines():
        example = s.lstrip().startswith(">>>") or example and bool(s.strip())
        field, words = re.match(r"(:\w+(?: \w+)?:|\.\. \w+::)?(.*)", s).groups()
        yield s if example else (field or "") + rst(words)


def short(value):
    "A default as it reads in a sentence; empty when there is none or it is long."
    words = repr(value)
    return "" if len(words) > 40 or " at 0x" in words else words


def parameters(obj):
    "Type, comment and default of each parameter."
    from fastcore.docments import docments, empty
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about docstrings of other people
        try: known = docments(inspect.unwrap(obj), full=True)
        except Exception: known = {}
    extra = []
    for key, about in known.items():
        if key == "self" or not about.get("docment"): continue
        kind, default = about.get("anno", empty), about.get("default", empty)
        said = rst(" ".join(about["docment"].split()))
        kind = None if kind in (empty, None) else stringify_annotation(kind, "smart")
        if key == "return":
            extra += [f":returns: {said}"] + [f":rtype: {kind}"] * bool(kind)
            continue
        tail = "" if default is empty else short(default)
        extra.append(f":param {key}: {said}" + (f"; default ``{tail}``" if tail else ""))
        if kind: extra.append(f":type {key}: {kind}")
    return extra


def with_types(obj, lines):
    "The annotation of each parameter that a docstring describes, in front of it."
    for i in reversed(range(len(lines))):
        name = re.match(r":param (\w+):", lines[i])
        known = name and inspect.signature(obj).parameters.get(name[1])
        if known: lines.insert(i, f":type {name[1]}: {stringify_annotation(known.annotation, 'smart')}")


def entry(app, what, name, obj, options, lines):
    "What stands below a name: words, parameters or a value, and where it was written."
    lines[:] = docstring(lines) if what != "module" else []
    if what == "module": return
    if any(s.startswith((":param", ":returns:")) for s in lines):  # in its docstring
        with_types(obj, lines)
    elif what in ("function", "method", "class", "exception"):
        lines += ["", *parameters(obj)]
    elif what == "data" and short(obj): lines += ["", f"It is ``{short(obj)}``."]
    module = next(m for m in HOME if name.startswith(f"{m}."))
    home, spot = HOME[module], name[len(module) + 1:].split(".")[0]
    lines += ["", f"`Explained in {home} <../{home}.html#def-{spot}>`__", ""]


def with_constants(app):
    "Sphinx reads a constant whose line has a comment as one that is documented."
    for module in HOME:  # from its file: nothing is imported before Sphinx forks
        known = ModuleAnalyzer.for_file(file_of(module), module)
        ModuleAnalyzer.cache["module", module] = known
        known.find_attr_docs().update(
            {("", name): [said, "", ":meta hide-value:", ""]
             for name, said in constants(module).items()})


def reference(app):
    "One small file a module, below api/; those of modules that are gone are removed."
    known = {"index", *(r[2] for r in ROOMS)}
    for path in (NBS / "api").glob("*.md"):
        if path.stem not in known: path.unlink()
    for name, _, module, title, motto in ROOMS:
        if not module: continue
        words = (f"# {module}\n\n> {motto}\n\nThe lesson is [{title}](../{name}.ipynb).\n\n"
                 f"```{{eval-rst}}\n.. automodule:: {LIB}.{module}\n```\n")
        path = NBS / "api" / f"{module}.md"
        if not path.exists() or path.read_text(encoding="utf-8") != words:
            path.write_text(words, encoding="utf-8")


# ---- frames ----

def registry(module):
    "Name -> explorer; none where there is no such module."
    try: return importlib.import_module(module).PAGES
    except ModuleNotFoundError as e:
        if e.name != module: raise
        return {}


class Frames(SphinxDirective):
    "An explorer as pictures with a slider: ```{frames} name```."
    required_arguments = 1

    def run(self):
        "HTML that asks for nothing, or one sentence."
        make = registry(self.config.frames_module).get(self.arguments[0])
        if make is None:
            words = (f"The explorer of {self.arguments[0]} is not in this build of the "
                     "pages; it needs the room 80_explorers.")
            return [nodes.paragraph("", words, classes=["no-frames"])]
        if self.env.temp_data.get("frames"):
            raise self.error("One explorer a page: more would be slow to load.")
        self.env.temp_data["frames"] = True
        html = f'<div class="frames">{make().frames()}</div>'
        return [nodes.raw("", html, format="html")]


def setup(app):
    "What Sphinx calls."
    app.connect("builder-inited", reference)
    app.connect("source-read", read)
    app.connect("builder-inited", with_constants)
    app.connect("autodoc-process-docstring", entry)
    app.add_config_value("frames_module", f"{LIB}.explorers", "env")
    app.add_directive("frames", Frames)
    return dict(parallel_read_safe=True, parallel_write_safe=True)
