# The commands of the README. Each does its own set-up.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
BIN := .venv/bin
# Much of a test is waiting, so two at a time; a file stays together, since it shares a site or a VM.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
.PHONY: help setup parts demo down test test-full test-ubuntu check format bench clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

setup:  ## Install Debian packages and the virtual environment
	@scripts/setup dev

demo:  ## Run the main job on this machine: a pod in an edge VM
	@scripts/setup run
	@scripts/demo

down:  ## Take the demo away
	@$(BIN)/kvedge site down dev

parts: setup
	@$(BIN)/kvedge tools build --also helm --also vke2e
	@$(BIN)/kvedge image build debian-12-edge

test: parts  ## Unit and integration tests and one real VM, under 15 minutes
	@$(PYTEST) -m "not slow and not ubuntu"

test-full: parts  ## Everything, longer tests too
	@$(PYTEST) -m "not ubuntu"

test-ubuntu: setup  ## Build and boot the Ubuntu images; fails where an archive does not answer
	@$(BIN)/python -m pytest -m ubuntu tests/integration/images/test_ubuntu.py

check: setup  ## Format, lint, types, import contracts, unit tests: under a minute
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/pyright
	@$(BIN)/lint-imports
	@$(BIN)/codespell
	@$(PYTEST) -q tests/unit tests/house

format: setup  ## Bring the code into form
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: setup  ## Run one benchmark: make -s bench NAME=cli
	@$(BIN)/python benchmarks/$(NAME).py

clean:  ## Remove the site and the virtual environment; caches stay
	@if [ -x $(BIN)/kvedge ]; then $(BIN)/kvedge site down --purge dev; fi
	@rm -rf .venv dist
