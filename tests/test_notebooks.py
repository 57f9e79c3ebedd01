"""Run every room as a reader does, on the library instead of the cells that define it.

An export cell is not executed: the names it defines, and only those, are fetched from
the exported module at its place. So one pass proves both that the library passes every
check on the page and that the page can be read from top to bottom.
"""
import importlib, resource, shutil, socket, subprocess, sys
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from traitlets.config import Config

import house

ROOMS = sorted((house.ROOT / "nbs").glob("*.ipynb"))
SKIP = {"slow", "gpu"}
CPU = 120  # seconds of processor that the cells of one room may take


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    "A machine without network, data sets or graphics card, in the folder of the rooms."
    connect = socket.socket.connect

    def local_only(self, address):
        if self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1"):
            return connect(self, address)
        raise OSError("a room needs no network")

    monkeypatch.setattr(socket.socket, "connect", local_only)
    monkeypatch.setenv("DH_DATA", str(tmp_path))
    monkeypatch.setenv("DH_CACHE", str(tmp_path / "kept"))
    monkeypatch.setenv("DH_DEVICE", "cpu")
    monkeypatch.chdir(house.ROOT / "nbs")
    return monkeypatch


@pytest.fixture
def shell(fresh, forgetful, tmp_path):
    "A kernel's worth of names, none of the user's own settings; what it registers goes."
    fresh.setenv("IPYTHONDIR", str(tmp_path))
    fresh.setitem(sys.modules, "__main__", sys.modules["__main__"])
    config = Config({"HistoryManager": {"enabled": False},
                     "InteractiveShell": {"colors": "nocolor"}})
    yield InteractiveShell.instance(config=config)
    InteractiveShell.clear_instance()


def names_of(cell, module):
    "What an export cell defines, taken from the library."
    mod = importlib.import_module(f"{house.LIB}.{module}")
    return {n: getattr(mod, n) for n in house.bound(cell.source)}


def run(room, shell):
    "Every cell that a reader runs; stops at the first that fails."
    for c in room.cells:
        if not c.runs or SKIP & set(c.directives): continue
        if c.exported: shell.user_ns.update(names_of(c, room.module)); continue
        with capture_output() as out: result = shell.run_cell(c.source)
        if not result.success:
            pytest.fail(f"{c}\n{c.source}\n\n{out.stdout[-3000:]}", pytrace=False)


def processor():
    "Seconds of processor so far, of this process and of those it has waited for."
    return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, (
        resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def afford(seconds):
    "Time by the clock says how busy a machine is; only gross growth is caught."
    assert seconds <= CPU, f"{seconds:.0f} s of processor, at most {CPU}: mark cells slow"


@pytest.mark.parametrize("path", ROOMS, ids=lambda p: p.stem)
def test_room(path, shell, record_property):
    before, spent = {p.name for p in path.parent.iterdir()}, processor()
    run(house.read(path), shell)
    spent = processor() - spent
    record_property("seconds of processor", spent)
    left = {p.name for p in path.parent.iterdir()} - before
    assert not left, f"the room leaves files behind: {left}"
    afford(spent)


def test_a_room_that_takes_too_long_fails():
    afford(CPU - 1)
    with pytest.raises(AssertionError): afford(CPU + 1)
    before = processor()
    sum(range(2_000_000))
    assert processor() > before


def toy(*cells):
    return house.Room("99_toy", [house.Cell(i, "code", s) for i, s in enumerate(cells)])


@pytest.mark.parametrize("cells", [
    ["assert 1 + 1 == 3"],
    ["1 / 0"],
    ["print(later)", "later = 1"],
    ["import socket\nsocket.create_connection(('192.0.2.1', 80))"],
    ["from pathlib import Path\nassert Path('99_nobody.ipynb').exists()"],
], ids=["wrong", "error", "order", "network", "files"])
def test_a_bad_room_fails(cells, shell):
    with pytest.raises(pytest.fail.Exception): run(toy(*cells), shell)


def test_slow_gpu_and_unevaluated_cells_are_skipped(shell):
    run(toy("#| slow\n1/0", "#| gpu\n1/0", "#| eval: false\n1/0", "assert 1"), shell)


def test_library_and_notebooks_are_in_step(tmp_path):
    for d in ("nbs", house.LIB):
        shutil.copytree(house.ROOT / d, tmp_path / d,
                        ignore=shutil.ignore_patterns("data", "__pycache__", ".*"))
    shutil.copy(house.ROOT / "settings.ini", tmp_path)
    for command in ("nbdev_export", "nbdev_clean"):
        run = [Path(sys.executable).with_name(command)]
        subprocess.run(run, cwd=tmp_path, check=True)
    new = {p.relative_to(tmp_path) for d in ("nbs", house.LIB)
           for p in (tmp_path / d).rglob("*") if p.suffix in (".py", ".ipynb")}
    changed = [str(p) for p in sorted(new) if not (house.ROOT / p).exists()
               or (tmp_path / p).read_bytes() != (house.ROOT / p).read_bytes()]
    assert not changed, f"run nbdev_export and nbdev_clean, then commit: {changed}"


def test_every_module_comes_from_a_room():
    lib = house.ROOT / house.LIB
    made = {".".join(p.relative_to(lib).with_suffix("").parts)
            for p in lib.rglob("*.py") if not p.name.startswith("_")}
    rooms = {r.module for r in house.ALL if r.module}
    assert made == rooms, f"no room for {made - rooms}, no module for {rooms - made}"
