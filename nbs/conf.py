"How the site is built; every fact about the package comes from settings.ini."
import os
import sys
from configparser import ConfigParser
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]
ini = ConfigParser(delimiters=["="])
ini.read(HERE.parent / "settings.ini", encoding="utf-8")
FACTS = ini["DEFAULT"]

project, author, release = FACTS["lib_name"], FACTS["author"], FACTS["version"]
copyright = FACTS["copyright"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon",
              "sphinx.ext.mathjax", "sphinx_design", "sphinx_copybutton", "pages"]
exclude_patterns = ["_*", "**.ipynb_checkpoints"]

# notebooks: stored outputs, or with DOCS_EXEC=force everything anew
nb_execution_mode = os.environ.get("DOCS_EXEC", "off")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # pages are made in parallel, one a core
nb_execution_timeout, nb_execution_raise_on_error = 600, True
nb_merge_streams, nb_render_markdown_format = True, "myst"
nb_code_prompt_show, nb_code_prompt_hide = "Show a solution", "Hide the solution"
myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # a room may step from `#` to `###`

# code
autodoc_member_order, autodoc_preserve_defaults = "bysource", True
autodoc_typehints = "none"  # types stand in the list of parameters
autodoc_default_options, autodoc_inherit_docstrings = {"members": True}, False
add_module_names, napoleon_custom_sections = False, ["Source"]
python_maximum_signature_line_length = 88
copybutton_exclude = ".linenos, .gp, .go"

# formulas: one file of one named host, the only request that leaves the page
mathjax_path = "https://cdn.jsdelivr.net/npm/mathjax@3.2.2/es5/tex-svg.js"

html_theme, html_title = "sphinx_book_theme", FACTS["title"]
html_static_path, html_css_files = ["_static"], ["house.css"]
html_favicon = "_static/house.svg"
html_context = {"default_mode": "auto"}  # light or dark, as the reader's machine has it
html_show_sphinx = html_copy_source = False
html_theme_options = dict(
    repository_url=FACTS["git_url"], repository_branch=FACTS["branch"],
    path_to_docs=FACTS["nbs_path"], use_repository_button=True,
    home_page_in_toc=True, show_toc_level=2, navigation_depth=2,
    launch_buttons={}, use_download_button=False,
    navbar_persistent=[], navbar_start=[], navbar_center=[], navbar_end=[],
    pygments_light_style="github-light-colorblind",
    pygments_dark_style="github-dark-colorblind")
