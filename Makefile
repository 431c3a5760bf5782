PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet -c constraints.txt

.PHONY: demo test test-oldest test-quantised lint types docs parity clean

demo: $(VENV)/.bench ## set up and teach the shipped model a stream of tasks
	$(BIN)/inducekv demo

test: $(VENV)/.dev ## set up and run the suite
	$(BIN)/python -m pytest

test-oldest: $(VENV)/.dev ## the parity suite on the oldest supported transformers
	.ci/older-transformers $(BIN)/python

test-quantised: $(VENV)/.dev ## quantised weights, in an environment of their own
	.ci/quantised $(BIN)/python

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

docs: $(VENV)/.dev ## build the documentation into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

parity: $(VENV)/.dev ## run the parity suite and keep its results for the documentation
	$(BIN)/python -m pytest tests/test_family_parity.py --junitxml=build/parity.xml
	$(BIN)/python tools/docs/parity_results.py build/parity.xml

clean:
	rm -rf $(VENV) .venv-older .venv-quantised demo-report build dist

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# constraints.txt names torch alone; installing it first lets pip take the build that fits the machine
$(VENV)/.bench: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) torch
	$(PIP) -e ".[bench]"
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) torch
	$(PIP) -e ".[dev]"
	@touch $@
