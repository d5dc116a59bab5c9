# Tidegate: the verbs. `make` alone prints them. Each CI job calls one of them, and nothing else.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON3 ?= python3
VENV ?= .venv
PYTHON := $(VENV)/bin/python
STAGES := check data train evaluate export image scan publish staging canary promote
# A lock that changed reinstalls only the packages that changed.
LOCKED := $(VENV)/.locked

.PHONY: help setup ci-local test fix lock bench doctor status history plan approve rollback down clean $(STAGES)

help: ## This menu
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  make STAGE      One stage and what it needs: $(STAGES)"

ci-local: $(LOCKED) ## The whole pipeline on this machine, from the commit to (local) production
	@$(PYTHON) -m pipeline run --all

test: $(LOCKED) ## All tests: unit, integration, end to end
	@$(PYTHON) -m pytest $(PYTEST_ARGS)

$(STAGES): $(LOCKED)
	@$(PYTHON) -m pipeline run $@

approve: $(LOCKED) ## Let the digest in staging into production (a person, by name)
	@$(PYTHON) -m pipeline approve

rollback: $(LOCKED) ## Put the version before back into production, at once
	@$(PYTHON) -m pipeline rollback

status history plan doctor down: $(LOCKED)
	@$(PYTHON) -m pipeline $@

status: ## What runs now, and what production and staging name
history: ## What was live when, who let it in, on what evidence
plan: ## What `make ci-local` would run, and why
doctor: ## What this machine lacks, with the remedy
down: ## Stop staging and production on this machine

fix: $(LOCKED) ## Format the code, and mend what the linter can
	@$(PYTHON) -m ruff format .
	@$(PYTHON) -m ruff check --fix .

bench: $(LOCKED) ## Measure speed, with peers beside, as ratios
	@$(PYTHON) -m bench

lock: ## Write requirements.txt anew from requirements.in (needs uv)
	@uv pip compile requirements.in --override requirements-override.txt --python-version 3.11 \
	  --python-platform x86_64-unknown-linux-gnu --no-emit-index-url --no-annotate --generate-hashes --output-file requirements.txt --quiet

setup: $(LOCKED) ## Make the locked environment (.venv), nothing else

clean: ## Delete build/ (costs a restore from the store, nothing more)
	@rm -rf build

$(LOCKED): requirements.txt
	@command -v $(PYTHON3) >/dev/null || { echo "$(PYTHON3) is not on PATH. Install Python 3.11 (Debian: apt-get install python3 python3-venv), or name it: make PYTHON3=/path/to/python3.11 …" >&2; exit 5; }
	@$(PYTHON3) -c 'import sys; v = sys.version_info[:2]; sys.exit(v != (3, 11) and "Python %d.%d is not what requirements.txt is locked for; name a Python 3.11: make PYTHON3=/path/to/python3.11 …" % v)'
	@$(PYTHON3) -c 'import ensurepip' 2>/dev/null || { echo "This Python cannot make virtual environments (no ensurepip). Debian: apt-get install python3-venv" >&2; exit 5; }
	@echo "Installing the locked environment into $(VENV) (once; about a minute) …" >&2
	@[ -x $(PYTHON) ] || $(PYTHON3) -m venv $(VENV)
	@$(PYTHON) -m pip install --disable-pip-version-check --require-hashes --no-deps -r requirements.txt \
	  | sed -un 's/^Collecting \([^=]*\)==\([^ ]*\).*/  \1 \2/p' >&2
	@touch $@
