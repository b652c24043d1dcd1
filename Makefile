# make demo: compress the embedded model and show what it cost; make test: all tests. Both need only Python and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet -c constraints.txt
SOURCES := pyproject.toml README.md $(shell find src recipes -type f -not -path '*/__pycache__/*')

.PHONY: demo test lint clean

demo: $(VENV)/.installed
	$(BIN)/actvar run recipes/var-fashion.yaml

test: $(VENV)/.tests
	$(BIN)/python -m pytest -q
	$(BIN)/python -m pytest -q -m slow

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# torch comes first and pinned, so that nothing below can pull another build of it.
$(VENV)/.torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	touch $@

$(VENV)/.installed: $(VENV)/.torch $(SOURCES)
	$(PIP) .
	touch $@

$(VENV)/.tests: $(VENV)/.installed
	$(PIP) '.[test]'
	touch $@

$(VENV)/.lint: $(VENV)/.installed
	$(PIP) '.[dev]'
	touch $@
