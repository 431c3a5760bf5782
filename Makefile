PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet -c constraints.txt

.PHONY: demo test test-oldest lint types clean

demo: $(VENV)/.bench ## set up and teach the shipped model a stream of tasks
	$(BIN)/inducekv demo

test: $(VENV)/.dev ## set up and run the suite
	$(BIN)/python -m pytest

test-oldest: $(VENV)/.dev ## the parity suite on the oldest supported transformers
	.ci/older-transformers $(BIN)/python

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .venv-older demo-report build dist

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
