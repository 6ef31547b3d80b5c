# Every target sets itself up: it needs make, bash and Python 3.11 or newer, and nothing by hand.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help demo serve test check lint audit bench soak lock clean

PYTHON ?= $(shell python3.11 -c 'print("python3.11")' 2>/dev/null || echo python3)
WORKERS ?= auto
PYTEST_ARGS ?=
UPGRADE ?=

BIN := .venv/bin
READY := .venv/.ready
COMPILE := $(BIN)/uv pip compile -q --python-version 3.11 --generate-hashes --no-annotate --no-header
# One file of tests goes to one worker: a server that a file starts is started once. They keep the order of conftest.py.
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

demo: $(READY)  ## the whole loop on a simulated population, in about three minutes
	@$(BIN)/nudge demo

serve: $(READY)  ## the service on http://127.0.0.1:8000, with its own store unless REDIS_URL is set
	@$(BIN)/nudge serve

test: lint  ## every check and every test (WORKERS=2 PYTEST_ARGS="-k engine" to choose)
	$(PYTEST)

check: lint  ## format, lint, types, imports and the fast tests, in under a minute
	$(PYTEST) -m "not slow and not soak"

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

audit: $(READY)  ## look up known faults in what we depend on (STRICT=1 fails where no source answers)
	@$(BIN)/python .ci/audit

bench: $(READY)  ## every benchmark beside its peer, and the table (BENCH="name ..." to choose)
	@$(BIN)/python -m benchmarks $(BENCH)

soak: $(READY)  ## the long tests under faults, then their results
	$(BIN)/python -m pytest -m soak -s --timeout=0 $(PYTEST_ARGS)
	@$(BIN)/python -m benchmarks --show

lock: $(BIN)/uv  ## pin what requirements*.in ask for, with hashes (UPGRADE=--upgrade for newer versions)
	$(COMPILE) $(UPGRADE) requirements.in -o requirements.txt
	$(COMPILE) $(UPGRADE) requirements-dev.in -o requirements-dev.txt

clean:  ## remove the environment and what runs and tools left behind; mlruns/ and var/ stay
	rm -rf .venv dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The pinned file is complete, so pip need not resolve (--no-deps); pip check proves that it is complete. Compiling
# apart, on every core, halves the time. Of pip's lines only a count and what follows an error are shown.
$(READY): requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Python 3.11 or newer is needed, and $(PYTHON) is not: name one with 'make PYTHON=/path/to/python3.11 ...'" >&2; \
	  exit 1; }
	@echo "Setting up .venv with $$(grep -c '^[a-z].*==' requirements-dev.txt) pinned packages: a minute or two, once."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --require-hashes --no-deps --no-compile --disable-pip-version-check --no-input \
	  -r requirements-dev.txt 2>&1 | tee .venv/install.log | awk -v tty="$$(test -t 2 && echo 1 || true)" ' \
	    /^ERROR/ { failed = 1 } failed { print; next } \
	    /^(Collecting|Processing|Requirement already)/ { n++; if (tty) printf "\r  %d fetched ", n; else if (n % 50 == 0) print "  " n " fetched"; fflush() } \
	    /^Installing/ { print (tty ? "\r" : "") "  " n " fetched, installing"; fflush() }'
	@echo "  compiling"; $(BIN)/python -m compileall -q -j 0 .venv/lib || true  # templates among the packages do not compile
	@$(BIN)/python -m pip install -q -q --no-deps --no-build-isolation --disable-pip-version-check --no-input -e .
	@$(BIN)/python -m pip check
	@touch $(READY)

# Locking must not need what it is about to lock.
$(BIN)/uv:
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-input uv
