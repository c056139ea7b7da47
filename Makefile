# Set on the command line, for instance `make demo DEMO_ARGS="seed=1"`:
PYTHON ?= python3
# Added to `pip install`, `python -m b2inst.train`, `pytest`, `benchmarks/run.py`, `scripts/plant_faults.py`,
# `scripts/gpu_check.py`, `scripts/study.py`:
PIP_ARGS ?=
DEMO_ARGS ?=
TEST_ARGS ?=
BENCH_ARGS ?=
FAULTS_ARGS ?=
GPU_ARGS ?=
STUDY_ARGS ?=
# Inputs of each fuzz test of `make soak`:
SOAK ?= 2000
# Most tests start programs of their own, which take some 2 GB; two processes with a thread each suit two cores.
TEST_PROCESSES ?= 2
# More threads than cores make small convolutions slower, not faster.
OMP_NUM_THREADS ?= 2

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := outputs/demo

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test soak faults gpu-check study bench lint format wheel clean

help: ## show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

setup: $(STAMP) ## make .venv and install b2inst with all it needs (PYTHON=python3.12, PIP_ARGS=...)

demo: $(STAMP) ## train on the built-in data, evaluate, draw; results in outputs/demo (DEMO_ARGS=...)
	@rm -rf $(DEMO)
	$(BIN)/python -m b2inst.train experiment=ablation_e recipe=demo output=$(DEMO) $(DEMO_ARGS)

test: $(STAMP) ## run the tests (TEST_ARGS=..., TEST_PROCESSES=2)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(TEST_PROCESSES) --dist worksteal $(TEST_ARGS)

soak: $(STAMP) ## kill runs and feed bad input, for long; figures go to docs/reliability.md (SOAK=2000 TEST_ARGS=...)
	OMP_NUM_THREADS=$(OMP_NUM_THREADS) B2INST_SOAK=$(SOAK) $(BIN)/python -m pytest -q -s -m soak $(TEST_ARGS)

faults: $(STAMP) ## plant faults and see tests fail; the table goes to docs/reliability.md (FAULTS_ARGS="--only sweep")
	@$(BIN)/python scripts/plant_faults.py $(FAULTS_ARGS)

gpu-check: $(STAMP) ## test and time on a CUDA device; figures go to docs/performance.md (GPU_ARGS="rounds=5")
	@$(BIN)/python scripts/gpu_check.py $(GPU_ARGS)

study: $(STAMP) ## train all that docs/results.md compares, or what is left of it (STUDY_ARGS="--hours 8 --dry-run")
	@OMP_NUM_THREADS=$(OMP_NUM_THREADS) $(BIN)/python scripts/study.py $(STUDY_ARGS)

bench: $(STAMP) ## time evaluator, masks and data against their peers (BENCH_ARGS="evaluator")
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --editable '.[test,bench]'
	OMP_NUM_THREADS=$(OMP_NUM_THREADS) $(BIN)/python benchmarks/run.py $(BENCH_ARGS)

lint: $(STAMP) ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## put style and formatting right where ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# build/ first: setuptools would pack files of an earlier build that are gone from the tree.
wheel: $(STAMP) ## build dist/b2inst-*.whl
	@rm -rf build
	$(BIN)/python -m build --wheel --no-isolation

clean: ## remove builds and caches (.venv, data and outputs stay)
	rm -rf build dist src/*.egg-info .pytest_cache .ruff_cache
	find . \( -path ./$(VENV) -o -path ./outputs -o -path ./data \) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { \
		echo "error: no '$(PYTHON)' here; name a Python >= 3.10, e.g. make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "error: b2inst needs Python >= 3.10, '$(PYTHON)' is $$($(PYTHON) --version 2>&1);" \
			"name another, e.g. make setup PYTHON=python3.12" >&2; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { \
		rm -rf $(VENV); echo "error: no virtual environment; on Debian: apt install python3-venv" >&2; exit 1; }

# The stamp makes a second call do nothing until the requirements change.
$(STAMP): setup.cfg pyproject.toml | $(BIN)/python
	@echo "Installing b2inst into $(VENV) (PyTorch is large: the first time takes minutes) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --editable '.[test]'
	@touch $@
	@echo "Installed: $$($(BIN)/python -c 'import importlib.metadata as m; print(*(p + " " + m.version(p) for p in ("b2inst", "torch", "pytorch-lightning")), sep=", ")')"
