# `make demo` and `make test` do everything on a machine with Python 3.11 to 3.13 and make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all check clean

demo: .venv/installed
	$(BIN)/octnas run search_spaces/digits.yaml

test: .venv/installed-dev check
	$(BIN)/pytest -m "not slow"

test-all: .venv/installed-dev check
	$(BIN)/pytest

# Style, types and the direction of imports.
check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

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
	rm -rf .venv
