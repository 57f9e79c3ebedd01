"What a person installs: built as a source archive, then as a wheel from that archive."
import importlib, importlib.util, json, os, shutil, subprocess, sys, tarfile, zipfile
from configparser import ConfigParser

import pytest

import house

INI = ConfigParser(delimiters=["="])
INI.read(house.ROOT / "settings.ini", encoding="utf-8")
FACTS = INI["DEFAULT"]
DATA = sorted(p.relative_to(house.ROOT).as_posix()
              for p in (house.ROOT / house.LIB / "data").rglob("*") if p.is_file())


def call(*args, **kw):
    run = [sys.executable, *map(str, args)]
    done = subprocess.run(run, capture_output=True, text=True, **kw)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "(archive, wheel) made in a copy of the project."
    tmp = tmp_path_factory.mktemp("package")
    shutil.copytree(house.ROOT, tmp / "p", ignore=shutil.ignore_patterns(
        ".*", "demo", "_docs", "build", "dist", "*.egg-info", "__pycache__"))
    call("-m", "build", "--no-isolation", "--outdir", tmp / "dist", tmp / "p")
    return next((tmp / "dist").glob("*.tar.gz")), next((tmp / "dist").glob("*.whl"))


def test_archive_and_wheel_hold_the_data_and_the_licences(built):
    with tarfile.open(built[0]) as t:
        archive = {n.partition("/")[2] for n in t.getnames()}
    wheel = zipfile.ZipFile(built[1]).namelist()
    assert DATA
    assert not {*DATA, "settings.ini", "LICENSE", "NOTICE", "README.md"} - archive
    assert not set(DATA) - set(wheel)
    assert {"LICENSE", "NOTICE"} <= {n.split("/")[-1] for n in wheel}
    assert {n.split("/")[0].split("-")[0] for n in wheel} == {house.LIB}


def test_wheel_offers_the_commands(built):
    wheel = zipfile.ZipFile(built[1])
    name, = [n for n in wheel.namelist() if n.endswith("entry_points.txt")]
    text = wheel.read(name).decode()
    for command in FACTS["console_scripts"].split():
        assert command.replace("=", " = ") in text


def test_installed_package_works_outside_the_clone(built, tmp_path):
    "From another folder, with the wheel before the clone on the path."
    call("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target",
         tmp_path / "site", built[1])
    code = ("import dh_nb, json, sys; from dh_nb.data import load_dataset;"
            "from dh_nb.cli import protect, reveal, student;"
            "protect(['embedded', 'out', '--per-class', '1']); student(['class']);"
            "reveal(['out/train/bag/' + __import__('os').listdir('out/train/bag')[0]]);"
            "d = load_dataset('embedded'); print(json.dumps([dh_nb.__file__, len(d)]))")
    env = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE")}
    env["PYTHONPATH"] = str(tmp_path / "site")
    out = call("-c", code, cwd=tmp_path, env=env)
    where, rows = json.loads(out.splitlines()[-1])
    assert where.startswith(str(tmp_path)) and rows == 2000
    assert len(list((tmp_path / "out").rglob("*.png"))) == 10
    assert len(list(tmp_path.glob("*.hidden.png"))) == 1
    rooms = {f"{r.name}.ipynb" for r in house.ALL}
    assert {p.name for p in (tmp_path / "class").glob("*.ipynb")} == rooms
    assert (tmp_path / "class/results/cells.jsonl").is_file()


def test_version_is_one_fact():
    assert importlib.import_module(house.LIB).__version__ == FACTS["version"]


def test_every_command_has_its_function():
    for line in FACTS["console_scripts"].split():
        module, _, name = line.split("=")[1].partition(":")
        assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize("target,words", [("demo", "dh_demo --out demo"),
                                          ("test", "pytest"),
                                          ("docs", "sphinx-build -q -E -W"),
                                          ("docs-fresh", "DOCS_EXEC=force")])
def test_makefile_keeps_its_promise(target, words):
    done = subprocess.run(["make", "--dry-run", target], cwd=house.ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0 and words in done.stdout


def test_the_figures_of_the_readme_are_rows_of_results():
    spec = importlib.util.spec_from_file_location("make", house.ROOT / "images" / "make.py")
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    text = (house.ROOT / "README.md").read_text(encoding="utf-8")
    assert make.fill(text) == text, "run python images/make.py, then commit"
