"Install dh_nb; every fact about the package lives in settings.ini."
from configparser import ConfigParser
from pathlib import Path
from shutil import copy2
from setuptools import find_packages, setup
from setuptools.command.build_py import build_py


class WithLessons(build_py):
    "The lessons and the rows they draw from travel inside the package."

    def run(self):
        super().run()
        if self.editable_mode: return  # a clone has them beside the library
        inside = Path(self.build_lib, "dh_nb", "notebooks")
        for pattern, folder in (("nbs/*.ipynb", inside),
                                ("results/*.csv", inside / "results"),
                                ("results/*.jsonl", inside / "results")):
            folder.mkdir(parents=True, exist_ok=True)
            for path in sorted(Path(".").glob(pattern)): copy2(path, folder)


ini = ConfigParser(delimiters=["="])
ini.read(Path(__file__).with_name("settings.ini"), encoding="utf-8")
cfg = ini["DEFAULT"]
kinds = ("lab", "explore", "features", "diffusion", "bench", "ray", "docs", "dev", "maps")
extras = {k: cfg[f"{k}_requirements"].split() for k in kinds}
extras["dev"] += [r for k in kinds if k not in ("dev", "maps") for r in extras[k]]
setup(
    cmdclass={"build_py": WithLessons},
    name=cfg["lib_name"], version=cfg["version"], description=cfg["description"],
    author=cfg["author"], author_email=cfg["author_email"], url=cfg["git_url"],
    license="Apache-2.0", license_files=["LICENSE", "NOTICE"],
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    packages=find_packages(include=["dh_nb", "dh_nb.*"]),
    package_data={"dh_nb": ["data/*", "data/*/*", "data/*/*/*"]}, python_requires=">=" + cfg["min_python"],
    install_requires=cfg["requirements"].split(), extras_require=extras,
    entry_points={"console_scripts": cfg["console_scripts"].split(),
                  "nbdev": ["dh_nb=dh_nb._modidx:d"]},
)
