# make demo   the main job on this machine: protect, train victims, write demo/
# make test   every check there is; the last line is the summary
# make docs   the site, from stored outputs, into _docs/ (docs-fresh: run every cell first)
# They make .venv on first use (PYTHON=/path/to/python picks another interpreter);
# Python compiles what is imported, so pip need not compile all the rest.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --no-input install --quiet --no-compile --root-user-action=ignore
FACTS := settings.ini setup.py
EXEC := off

.PHONY: demo test chromium docs docs-fresh clean
.NOTPARALLEL:

demo: .venv/.package
	.venv/bin/dh_demo --out demo --force

test: .venv/.dev chromium
	$(PY) -m pytest tests -n 2 --dist worksteal --durations=5 --cov=dh_nb --cov-config=tests/coverage.ini --cov-fail-under=85

# The browser tests need Chromium: fetched where that may be done, else they are skipped.
chromium:
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || \
	{ test "$$(id -u)" = 0 && { apt-get update -qq; apt-get install -y -qq chromium; } >/dev/null 2>&1; } || \
	echo "No Chromium here, and none could be installed: the browser tests are skipped."

docs: .venv/.dev
	@start=$$(date +%s); DOCS_EXEC=$(EXEC) \
	.venv/bin/sphinx-build -q -E -W --keep-going -j auto -b html nbs _docs && \
	echo "Open _docs/index.html; it took $$(($$(date +%s) - start)) seconds."

docs-fresh:
	$(MAKE) --no-print-directory docs EXEC=force

clean:
	rm -rf .venv demo _docs

.venv/bin/pip:
	$(PYTHON) -m venv .venv

.venv/.package: $(FACTS) | .venv/bin/pip
	$(PIP) --editable .
	touch $@

.venv/.dev: $(FACTS) | .venv/bin/pip
	$(PIP) --editable '.[dev]'
	$(PIP) --no-deps torchattacks==3.5.1  # it pins old versions of what it does not need
	touch .venv/.package $@
