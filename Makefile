# Everything a person or a CI job does with this checkout. `make demo` and `make test` do all their own set-up.
.DEFAULT_GOAL := help
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory
SHELL := /bin/sh

# An almost empty environment is enough; what the caller's shell sets for Python must not decide how this is built.
export PATH := $(PATH):/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/go/bin
export PYTHONNOUSERSITE := 1
# uv trusts what the machine trusts, as apt, pip and go do.
export UV_SYSTEM_CERTS := 1
unexport PYTHONDONTWRITEBYTECODE PYTHONHOME PYTHONPATH VIRTUAL_ENV

PYTHON := .venv/bin/python
# Nothing here reads from the terminal, and new files are readable by the services whatever the caller's umask is.
RUN := umask 022 && exec </dev/null &&

.PHONY: help setup setup-tests setup-peers environment demo test test-all test-unit bench bench-peers bench-full soak chaos engines proto lint format typecheck images up clean uninstall

help: ## say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

setup: ## install everything that this machine lacks (root)
	@deploy/install/setup

setup-tests: setup
	@deploy/install/setup tests

setup-peers: setup
	@deploy/install/setup peers

environment:
	@deploy/install/setup environment

demo: setup ## real programs, evaluated by the whole stack in gVisor, as a table (root)
	@$(RUN) $(PYTHON) -m crucible_deploy.demo

test: setup setup-tests lint typecheck test-all ## set-up, linters, types and every test (root)

test-all:
	@$(RUN) $(PYTHON) -m tests.all

test-unit: environment ## the quick part, under a minute: what needs neither root nor PostgreSQL and is not slow
	@$(RUN) $(PYTHON) -m pytest -n 2 -m "not root and not postgresql and not alone and not slow"

# ARGS are passed on: make bench ARGS="--json --only warm", make soak ARGS="--count 1000".
bench: setup ## the benchmark table, each row beside its baseline; under 15 minutes (root)
	@$(RUN) $(PYTHON) -m crucible_deploy.bench $(ARGS)

bench-peers: setup-peers ## install what the benchmark compares with: Docker, bubblewrap, two packages of PyPI (root)

bench-full: setup setup-peers ## the same with many more samples, and all that can be compared with; under an hour (root)
	@$(RUN) $(PYTHON) -m crucible_deploy.bench --full $(ARGS)

soak: setup ## 10,000 runs in a row, and whether anything grows; about 20 minutes (root)
	@$(RUN) $(PYTHON) -m crucible_deploy.soak $(ARGS)

chaos: setup ## processes killed and paused at random moments while 2,000 programs run; about 20 minutes, at most 50 (root)
	@$(RUN) $(PYTHON) -m crucible_deploy.chaos $(ARGS)

engines: setup-tests ## the conformance matrix of all engines, written to docs/ENGINES.md (root)
	@$(RUN) $(PYTHON) -m pytest tests/conformance --deselect tests/conformance/test_engines_page.py --engines-md docs/ENGINES.md

proto: environment ## generate the Python of the contracts
	@$(RUN) $(PYTHON) protos/generate.py

lint: environment ## ruff, import-linter, buf, and whether generated code is current
	@$(RUN) .venv/bin/ruff check .
	@$(RUN) .venv/bin/ruff format --check .
	@$(RUN) .venv/bin/lint-imports
	@$(RUN) cd protos && ../.venv/bin/buf lint
	@$(RUN) $(PYTHON) protos/generate.py --check

format: environment ## put the code into its form
	@$(RUN) .venv/bin/ruff check --fix-only .
	@$(RUN) .venv/bin/ruff format .

typecheck: environment ## mypy, strict
	@$(RUN) .venv/bin/mypy

images: setup ## build every root file system and check every byte of them (root)
	@$(RUN) .venv/bin/crucible images build --all
	@$(RUN) .venv/bin/crucible images check

up: setup ## start the stack; Ctrl-C stops it (root)
	@.venv/bin/crucible up

clean: ## remove what tools left in the checkout; .venv stays
	@rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name .venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

uninstall: ## undo what set-up and `up` made on this machine; Debian packages stay (root)
	@deploy/install/uninstall
