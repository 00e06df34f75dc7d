# `make demo` and `make test` do everything on a machine with Python 3.11 to 3.13 and make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all check licences matrix clean

demo: .venv/installed
	$(BIN)/octnas run search_spaces/digits.yaml

test: .venv/installed-dev check
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow"

test-all: .venv/installed-dev check
	$(BIN)/pytest -n 2 --dist loadfile

# Style, types and the direction of imports.
check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The licences of all that is installed with octnas, as a table.
licences: .venv/installed-dev
	$(BIN)/pip-licenses --from=mixed --format=markdown --order=license

# The suite with the oldest versions that pyproject.toml states of the libraries that decide
# results, and with the newest that there are: an environment of 7 GB for each, in .matrix.
# `make matrix MATRIX=newest` for one of them.
MATRIX ?= oldest newest

matrix: $(MATRIX:%=.matrix/%/passed)

.matrix/%/constraints.txt: pyproject.toml tests/matrix.py
	mkdir -p $(@D)
	$(PYTHON) tests/matrix.py $* > $@

.matrix/%/passed: .matrix/%/constraints.txt FORCE
	$(PYTHON) -m venv .matrix/$*/venv
	.matrix/$*/venv/bin/pip install --upgrade --upgrade-strategy eager \
		--constraint .matrix/$*/constraints.txt --editable ".[dev]"
	.matrix/$*/venv/bin/pytest
	touch $@

FORCE:

.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip

.venv/installed: .venv/bin/python pyproject.toml
	$(BIN)/pip install --editable .
	touch $@

.venv/installed-dev: .venv/bin/python pyproject.toml
	$(BIN)/pip install --editable ".[dev]"
	touch $@ .venv/installed

clean:
	rm -rf .venv .matrix
