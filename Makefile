# make setup | demo | test | test-all | test-rounding | docs: each sets up .venv by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One more test process than cores, because some tests wait; at most four, each with up to 3 GB.
WORKERS := $(shell $(PYTHON) -c 'import os; print(min((os.cpu_count() or 1) + 1, 4))')

.PHONY: setup demo test test-all test-rounding lint style types suite docs clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -e '.[app,demo,tensorboard,video,dev]'
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/python demo.py

lint: style types

style: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy .

suite: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# Byte code is kept, whatever the environment says: half of the time to collect the tests goes into compiling them.
test test-all: export PYTHONDONTWRITEBYTECODE =
test: style
	@$(MAKE) --no-print-directory -j 2 types suite
	$(BIN)/python -m tools.rounding --short

# With tests marked `exhaustive`, and all examples of hypothesis.
test-all: lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow" --hypothesis-profile=default
	$(BIN)/python -m tools.rounding

# The parity and ops tests as other processors round: instruction sets, threads, without kernels, without a compiler.
test-rounding: $(STAMP)
	$(BIN)/python -m tools.rounding

# The pages of docs/ and the API from docstrings, in site/index.html.
docs: $(STAMP)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -e '.[docs]'
	$(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) demo site .pytest_cache .mypy_cache .ruff_cache
