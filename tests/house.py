"""The conventions of the house as functions: one rule each, a room in, sentences out.

`python tests/house.py` checks every room; name notebooks to check only those.
How a room is built is told in nbs/92_house.ipynb.
"""
import ast, io, json, re, shutil, symtable, sys, tokenize
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from dh_nb import PUBLIC  # noqa: E402: it imports nothing

ROOT = Path(__file__).resolve().parent.parent
CHROME = next(filter(None, map(shutil.which, (
    "chromium", "chromium-browser", "google-chrome"))), None)  # for tests of pages
LIB = "dh_nb"
WIDTH, LINES, CLASS_LINES, BYTES, NEAR = 88, 25, 40, 300_000, 3
DIRECTIVES = {"export", "exporti", "hide", "eval: false", "slow", "gpu"}
NOT_FOR_READERS = {"nbdev", "fastcore", "execnb", "IPython"}
HINT = re.compile(r"^<details><summary>Hint</summary>$", re.M)
SITE_ONLY = re.compile(r"\[\]\(\S+\)|\{\w+\}`|^:{3,}|^`{3,}\{", re.M)
HOME = re.compile(r"(?<![\w.:/~-])/(?:root|work|home/\w+|Users/\w+)/\w|[A-Z]:\\Users\\"
                  r"|/tmp/ipykernel")
WAIT = re.compile(r"# (about )?(an?|\d+) (second|minute|hour)s?, ")
FREE = {  # what a lesson may do without, and why
    "formula": {7: "widgets", 55: "a list of names", 71: "those of 56 and 62",
                80: "widgets", 90: "a call of other rooms", 91: "commands"},
    "picture": {7: "its pictures are live", 61: "its results are rows and tables"},
}
RULES = {}


def rule(f):
    "Register a rule: a generator of sentences that tell the author what to do."
    RULES[f.__name__] = f
    return f


# ---- a notebook, parsed ----

@dataclass
class Cell:
    "One cell; `at` is its place in the notebook, counted from 0."
    at: int
    kind: str
    source: str
    tags: list = field(default_factory=list)
    outputs: list = field(default_factory=list)

    @cached_property
    def directives(self):
        "nbdev's `#|` lines, spaces evened out."
        if not self.code: return []
        marks = [s[2:].strip() for s in self.source.splitlines() if s.startswith("#|")]
        return [re.sub(r"\s*:\s*", ": ", m) for m in marks]

    @cached_property
    def python(self):
        "The code; shell and magic lines count as `pass`."
        code = self.source if self.code else ""
        return re.sub(r"^(\s*)[!%].*$", r"\1pass", code, flags=re.M)

    @cached_property
    def tree(self): return ast.parse(self.python)

    @property
    def code(self): return self.kind == "code"

    @property
    def exported(self): return bool({"export", "exporti"} & set(self.directives))

    @property
    def for_readers(self): return self.code and "hide" not in self.directives

    @property
    def runs(self): return self.code and "eval: false" not in self.directives

    def __str__(self):
        lines = [s for s in self.source.splitlines() if s and not s.startswith("#|")]
        return f"cell {self.at} ({lines[0][:50]!r})" if lines else f"cell {self.at}"


@dataclass
class Room:
    "A notebook; `module` is None for a room that exports nothing."
    name: str
    cells: list
    metadata: dict = field(default_factory=dict)
    size: int = 0

    @property
    def number(self): return int(self.name[:2])

    @cached_property
    def module(self):
        marks = [d.split() for c in self.cells for d in c.directives]
        return next((m[1] for m in marks if m[0] == "default_exp" and len(m) > 1), None)

    @property
    def exports(self): return [c for c in self.cells if c.exported]


def read(path):
    "A room from its file."
    text = Path(path).read_text(encoding="utf-8")
    nb = json.loads(text)
    join = lambda s: s if isinstance(s, str) else "".join(s)
    cells = [Cell(i, c["cell_type"], join(c["source"]), c["metadata"].get("tags", []),
                  c.get("outputs", [])) for i, c in enumerate(nb["cells"])]
    return Room(Path(path).stem, cells, nb["metadata"], len(text.encode()))


def rooms(): return [read(p) for p in sorted((ROOT / "nbs").glob("*.ipynb"))]


def is_import(node):
    "An import, or a try that only guards one."
    guarded = isinstance(node, ast.Try) and all(map(is_import, node.body))
    return guarded or isinstance(node, (ast.Import, ast.ImportFrom))


def imported(tree):
    "Dotted names a piece of code imports, wherever in it."
    for n in ast.walk(tree):
        if isinstance(n, ast.Import): yield from (a.name for a in n.names)
        elif isinstance(n, ast.ImportFrom):
            base = ".".join(filter(None, [LIB if n.level else "", n.module]))
            yield from (f"{base}.{a.name}" for a in n.names)


def bound(code):
    "Names a piece of code binds at its top level."
    symbols = symtable.symtable(code, "cell", "exec").get_symbols()
    return {s.get_name() for s in symbols if s.is_assigned() or s.is_imported()}


# ---- the page ----

@rule
def known_name(room):
    if not re.fullmatch(r"\d\d_[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*", room.name):
        yield "name the file NN_module.ipynb, or NN_package.module.ipynb"


@rule
def opening(room):
    first = room.cells[0] if room.cells else Cell(0, "none", "")
    lines = [s for s in first.source.splitlines() if s.strip()]
    quotes = [s for s in lines if s.startswith(">")]
    if first.kind != "markdown" or not lines or not lines[0].startswith("# "):
        yield "begin with a markdown cell whose first line is `# Title`"
    elif len(quotes) != 1 or lines[1] != quotes[0]:
        yield "under the title write one line `> ...` that says what the room is for"


@rule
def goals(room):
    cell = room.cells[1] if len(room.cells) > 1 else Cell(1, "none", "")
    for words in ("You will be able to", "Needs", "Takes"):
        if cell.kind != "markdown" or words not in cell.source:
            yield f"the second cell (markdown) says \"{words} ...\""


@rule
def everywhere(room):
    "Jupyter, GitHub and Colab know plain Markdown; the site makes the rest of it."
    for c in room.cells:
        if c.kind == "markdown" and (m := SITE_ONLY.search(c.source)):
            yield f"{c}: only the site understands {m[0]!r}"


@rule
def ending(room):
    heads = [(c.at, m) for c in room.cells if c.kind == "markdown"
             for m in re.findall(r"^## +(.+?) *$", c.source, re.M)]
    want = ["Summary", "Exercises", "Where next", "References"]
    if [h for _, h in heads][-4:] != want:
        yield f"end with the level 2 headings {', '.join(want)}, in this order"
        return
    begin, end = heads[-3][0], heads[-2][0]
    part = room.cells[begin:end + 1]
    hints = sum(len(HINT.findall(c.source)) for c in part if c.kind == "markdown")
    if hints != 3:
        yield f"three exercises with one <details> Hint each; found {hints}"
    solved = [c for c in part if "solution" in c.tags and c.runs]
    if len(solved) < 3:
        yield f"each exercise has a code cell tagged `solution`; found {len(solved)}"
    for c in solved:
        if "assert" not in c.source: yield f"{c}: a solution ends in an assert"


def pictures(room):
    "Cells that show a stored picture, solutions apart."
    return [c for c in room.cells if "solution" not in c.tags and any(
        k.startswith("image/") for o in c.outputs for k in o.get("data", {}))]


def words(room, places, least=8):
    "Whether one of these cells is prose: at least so many words under its heading."
    near = [room.cells[i] for i in places if 0 <= i < len(room.cells)]
    prose = [re.sub(r"^#+ .*$", "", c.source, flags=re.M) for c in near if not c.code]
    return any(len(p.split()) >= least for p in prose)


def estimate(room):
    "Minutes to read a room: 200 words a minute, 12 lines of code a minute."
    prose = sum(len(c.source.split()) for c in room.cells if not c.code)
    lines = [s for c in room.cells if c.code for s in c.source.splitlines()]
    return prose / 200 + sum(bool(s) and s[:2] != "#|" for s in lines) / 12


@rule
def minutes(room):
    text = room.cells[1].source if len(room.cells) > 1 else ""
    says, about = re.search(r"Takes: (\d+) minutes? to read", text), estimate(room)
    if not says: yield "the second cell says `Takes: N minutes to read ...`"
    elif not about / 2 <= int(says[1]) <= about * 3 / 2:
        yield f"say `Takes: {about:.0f} minutes`: its words and lines ask for that"


@rule
def skeleton(room):
    prose = [c.source for c in room.cells if c.kind == "markdown"]
    free = lambda what: room.number in FREE[what]
    if not free("formula") and not any("$$" in s for s in prose):
        yield "no formula: write one on a line of its own, between `$$`"
    if not free("picture") and not pictures(room):
        yield "no picture: show what a number cannot"
    if not any("assert" in c.source for c in room.cells
               if c.code and not c.exported and "solution" not in c.tags):
        yield "no check: assert a value that is known by hand"
    first = next((c for c in room.exports[1:]), None)
    if first and not words(room, range(2, first.at)):
        yield f"{first}: say why before the first line of code"


@rule
def reading(room):
    shown = pictures(room)
    for c in shown:
        near = [c.at + i for i in (-2, -1, 1, 2)]
        if not words(room, near): yield f"{c}: say what its picture shows"
    if shown and not any(words(room, [c.at + 1, c.at + 2], 15) for c in shown):
        yield "read one picture after it is shown: what is to be seen in it"


@rule
def plain_outputs(room):
    if "widgets" in room.metadata: yield "widget state is saved: clear it (nbdev_clean)"
    for c in room.cells:
        for o in c.outputs:
            if any("widget" in k for k in o.get("data", {})):
                yield f"{c}: a widget view is saved: show a picture instead"
            if o.get("output_type") == "error":
                yield f"{c}: an error is saved: mend the cell"
            if o.get("name") == "stderr":
                yield f"{c}: a warning or a progress bar is saved: keep the cell quiet"


@rule
def small(room):
    if room.size > BYTES:
        yield (f"{room.size // 1000} KB: at most {BYTES // 1000} KB, "
               "so draw fewer or smaller pictures")


@rule
def no_home(room):
    for c in room.cells:
        for text, where in ((c.source, "source"), (json.dumps(c.outputs), "output")):
            if hit := HOME.search(text):
                near = text[hit.start():hit.start() + 40]
                yield f"{c}: its {where} names a folder of one machine: {near!r}"


@rule
def directives(room):
    for c in room.cells:
        for d in c.directives:
            if d not in DIRECTIVES and not re.fullmatch(r"default_exp [\w.]+", d):
                known = ", ".join(sorted(DIRECTIVES))
                yield f"{c}: unknown `#| {d}`; known: default_exp, {known}"
        if c.code and not c.source.startswith("#|") and c.directives:
            yield f"{c}: `#|` lines come first in a cell"


@rule
def waiting(room):
    for c in room.cells:
        if "slow" in c.directives and not WAIT.match(c.source.partition("#| slow\n")[2]):
            yield f"{c}: under `#| slow` a comment says how long: `# about 3 minutes, ...`"


# ---- the code in it ----

@rule
def parses(room):
    for c in room.cells:
        try: ast.parse(c.python)
        except SyntaxError as e: yield f"{c}: {e}"


@rule
def module(room):
    if not room.module:
        if room.exports: yield "a room that exports says `#| default_exp module`"
        return
    if room.name != f"{room.number:02}_{room.module}":
        yield f"`default_exp {room.module}` and the file name {room.name} must agree"
    marks = [c.at for c in room.cells if any("default_exp" in d for d in c.directives)]
    if marks != [2]: yield "`#| default_exp` stands once, in the third cell"


@rule
def imports(room):
    if not room.module: return
    if not room.exports: yield "a room with a module exports something"
    for i, c in enumerate(room.exports):
        body = [n for n in c.tree.body if not isinstance(n, ast.Expr)]
        if i == 0 and not (body and all(map(is_import, body))):
            yield f"{c}: the first export cell holds the imports and nothing else"
        if i > 0 and any(map(is_import, body)):
            yield f"{c}: imports belong into the first export cell"
    for c in room.cells:
        if any(name.endswith(".*") for name in imported(c.tree)):
            yield f"{c}: name what you import instead of `*`"


@rule
def floors(room):
    if not room.module: return
    known = {r.module: r.number for r in ALL if r.module}
    for c in room.cells:
        for name in imported(c.tree):
            if name.split(".")[0] != LIB: continue
            path = name.split(".")[1:]
            tries = [".".join(path[:n]) for n in range(len(path), 0, -1)]
            low = next((known[t] for t in tries if t in known), None)
            if low is not None and low >= room.number:
                yield f"{c}: `{name}` is room {low:02}: import only from lower numbers"


@rule
def for_readers(room):
    for c in room.cells:
        if not (c.for_readers or c.exported): continue
        tops = {n.split(".")[0] for n in imported(c.tree)}
        for top in sorted(tops & NOT_FOR_READERS): yield f"{c}: do without `{top}`"
        if c.exported and re.search(r"\bpyplot\b|\bpylab\b|\bplt\.", c.source):
            yield f"{c}: no pyplot in the library: draw on a Figure that is passed in"


@rule
def rhythm(room):
    for c in room.exports[1:]:
        names = bound(c.source)
        for later in room.cells[c.at + 1:c.at + 1 + NEAR]:
            if not later.runs or later.exported: continue
            used = {n.id for n in ast.walk(later.tree) if isinstance(n, ast.Name)}
            if names & used or "assert" in later.source: break
        else: yield f"{c}: use or check it within the next {NEAR} cells"


@rule
def line_width(room):
    for c in room.cells:
        for s in c.source.splitlines() if c.code else []:
            if len(s) > WIDTH:
                yield f"{c}: {len(s)} characters, at most {WIDTH}: {s[:40]!r}"


def comments(source):
    "Line number -> comment on that line."
    toks = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string for t in toks if t.type == tokenize.COMMENT}


def statements(node):
    "Body without the docstring."
    skip = ast.get_docstring(node) is not None
    return node.body[skip:]


def code_lines(node, source):
    "Numbers of the lines that hold code: no signature, docstring, comment, empty line."
    rows = source.splitlines()
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return set().union(*(code_lines(n, source) for n in statements(node)))
    span = range(node.lineno, node.end_lineno + 1)
    return {i for i in span if not re.match(r"\s*(#|$)", rows[i - 1])}


@rule
def length(room):
    for c in room.exports[1:]:
        defs = [n for n in ast.walk(c.tree) if isinstance(n, ast.FunctionDef)]
        for f in defs:
            if (n := len(code_lines(f, c.source))) > LINES:
                yield f"{c}: `{f.name}` has {n} lines of code, at most {LINES}"
        has_class = any(isinstance(n, ast.ClassDef) for n in c.tree.body)
        total = len(set().union(*(code_lines(n, c.source) for n in c.tree.body)))
        if total > (most := CLASS_LINES if has_class else LINES):
            yield f"{c}: {total} lines of code, at most {most}: split the cell"


def public(body, owner=""):
    "Public functions with their dotted names: top level and methods of public classes."
    for n in body:
        if isinstance(n, ast.FunctionDef):
            if n.name[0] != "_" or owner and n.name in ("__init__", "__call__"):
                yield owner + n.name, n
        elif isinstance(n, ast.ClassDef) and not n.name.startswith("_"):
            yield from public(n.body, n.name + ".")


def undocumented(f, notes):
    "What of a signature has no comment of its own on its line."
    a = f.args
    args = a.posonlyargs + a.args + [a.vararg] * bool(a.vararg) + a.kwonlyargs
    args += [a.kwarg] * bool(a.kwarg)
    defaults = a.defaults + [d for d in a.kw_defaults if d]
    ends, seen = [], []
    for x in args:
        if x.arg in ("self", "cls"): continue
        here = (x.end_lineno, x.end_col_offset)
        after = [d.end_lineno for d in defaults
                 if d.lineno == here[0] and d.col_offset >= here[1]]
        ends.append((x.arg, (after or here)[0]))
    for name, line in ends:
        if line not in notes or line in seen: yield f"parameter `{name}`"
        seen.append(line)
    own = [n for s in f.body for n in walk_own(s)]
    returns = any(isinstance(n, (ast.Return, ast.Yield)) and n.value for n in own)
    if returns and f.returns is None: yield "the type of what is returned"
    elif returns and f.returns.end_lineno not in notes.keys() - set(seen):
        yield "what is returned"


def walk_own(node):
    "Like ast.walk, but not into functions defined inside."
    if isinstance(node, (ast.FunctionDef, ast.Lambda, ast.ClassDef)): return
    yield node
    for n in ast.iter_child_nodes(node): yield from walk_own(n)


@rule
def docments(room):
    for c in room.exports:
        notes = comments(c.source)
        found = [(name, f) for name, f in public(c.tree.body)
                 if PUBLIC.get(name) != room.module]
        classes = [n for n in c.tree.body
                   if isinstance(n, ast.ClassDef) and not n.name.startswith("_")]
        for name, f in found:
            for what in undocumented(f, notes):
                yield f"{c}: `{name}`: say in a comment on its line: {what}"
        for k in classes:
            marks = [ast.unparse(d) for d in k.decorator_list]
            if not any("dataclass" in m for m in marks): continue
            for n in k.body:
                if isinstance(n, ast.AnnAssign) and n.end_lineno not in notes:
                    what = f"{k.name}.{n.target.id}"
                    yield f"{c}: `{what}`: say in a comment on its line what it is"
        for name, n in [*found, *((k.name, k) for k in classes)]:
            doc = ast.get_docstring(n)
            if name.endswith("__init__") or name.endswith("__call__"): continue
            if not doc: yield f"{c}: `{name}` has no docstring"
            elif "\n" in doc and PUBLIC.get(name) != room.module:
                yield f"{c}: `{name}`: one line of docstring, the rest is prose above"


@rule
def front_door(room):
    "What `dh_nb` exports is told whole in its docstring, with an example that runs."
    for c in room.exports:
        for n in c.tree.body:
            if not isinstance(n, ast.FunctionDef): continue
            if PUBLIC.get(n.name) != room.module: continue
            doc, a = ast.get_docstring(n) or "", n.args
            for x in a.args + a.kwonlyargs:
                if not re.search(rf"^    {x.arg}: \S", doc, re.M):
                    yield f"{c}: `{n.name}`: say under `Args:` what `{x.arg}` is"
            for part in ("Returns:", "Example:", "    >>> "):
                if f"\n{part}" not in doc: yield f"{c}: `{n.name}`: its docstring lacks {part}"
            if "raise BadInput" in c.source and a.args and "\nRaises:" not in doc:
                yield f"{c}: `{n.name}`: say under `Raises:` what it refuses"


# ---- the command ----

ALL = rooms()


def check(room):
    "Every sentence the rules have about a room; of one that does not parse, only that."
    names = ["parses"] if any(RULES["parses"](room)) else RULES
    return [f"[{n}] {s}" for n in names for s in RULES[n](room)]


if __name__ == "__main__":
    chosen = [read(p) for p in sys.argv[1:]] or ALL
    said = [f"{r.name}: {s}" for r in chosen for s in check(r)]
    print("\n".join(said) or f"{len(chosen)} rooms in order")
    sys.exit(bool(said))
