# make demo   sets up .venv, then trains, indexes, replays and forks the sample run
# make test   sets up the same, then lint, types and tests
# make bench  timings; their results belong in tests/benchmarks/RESULTS.md
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

# Published runs beside the checkout, where they are; tests that need them say when they skip.
ifneq ($(wildcard ../shared/fixtures),)
export FORENSICS_FIXTURES ?= $(abspath ../shared/fixtures)
endif

.PHONY: demo test lint types bench clean

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/ready
	$(BIN)/forensics demo

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/ready
	$(BIN)/mypy

test: lint types
	$(BIN)/pytest

bench: $(VENV)/ready
	$(BIN)/python -m tests.benchmarks.run

clean:
	rm -rf $(VENV) build dist *.egg-info
