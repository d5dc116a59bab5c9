# Tidegate: the verbs. `make` alone prints them. Each CI job calls one of them, and nothing else.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON3 ?= python3
VENV ?= .venv
PYTHON := $(VENV)/bin/python
# make ci-local TARGET=docker: staging and production are containers (target.kind in pipeline.yaml).
ifdef TARGET
export TIDEGATE_TARGET := $(TARGET)
endif
STAGES := check data train evaluate export image scan publish staging canary promote
# A lock that changed reinstalls only the packages that changed. Compared by content: an environment that was made from
# another checkout's lock may well be the younger file.
LOCKED := $(VENV)/.locked
CHANGED := $(shell cmp -s requirements.txt $(LOCKED) || echo changed)

.PHONY: help setup ci-local test fix lock lock-images update gc recheck bench train-image examine doctor status logs history plan comment approve rollback down clean $(STAGES)

help: ## This menu
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  make STAGE       One stage and what it needs: $(STAGES)"

ci-local: $(LOCKED) ## The whole pipeline on this machine, from the commit to (local) production
	@$(PYTHON) -m pipeline run --all

test: $(LOCKED) ## All tests: unit, integration, end to end
	@$(PYTHON) -m pytest $(PYTEST_ARGS)

$(STAGES): $(LOCKED)
	@$(PYTHON) -m pipeline run $@

examine: $(LOCKED) ## Run Trivy over the image in build/, without any key; `make scan` judges what it found
	@$(PYTHON) -m pipeline examine

# What is in no stage's key (documents, settings) is looked at each time, in half a second.
check: rest
.PHONY: rest
rest: $(LOCKED)
	@$(PYTHON) -m pipeline.lint

approve: $(LOCKED) ## Let the digest in staging into production (a person, by name)
	@$(PYTHON) -m pipeline approve

rollback: $(LOCKED) ## Put the version before back into production, at once
	@$(PYTHON) -m pipeline rollback

status logs history plan comment doctor down: $(LOCKED)
	@$(PYTHON) -m pipeline $@

status: ## What runs now, and what production and staging name
logs: ## What production wrote (staging, --follow: python -m pipeline logs --help)
history: ## What was live when, who let it in, on what evidence
comment: ## Tell a merge request what its pipeline found (CI)
plan: ## What `make ci-local` would run, and why
doctor: ## What this machine lacks, with the remedy
down: ## Stop staging and production on this machine

fix: $(LOCKED) ## Format the code, and mend what the linter can
	@$(PYTHON) -m ruff format .
	@$(PYTHON) -m ruff check --fix .

update: $(LOCKED) ## Propose newer versions of what is locked, as a branch
	@$(PYTHON) -m pipeline.update

gc: $(LOCKED) ## Remove from the store what no channel and no retention rule needs
	@$(PYTHON) -m pipeline gc

recheck: $(LOCKED) ## Execute two stages that hold once more, and compare byte by byte
	@$(PYTHON) -m pipeline run data evaluate export image --recheck 2

bench: $(LOCKED) ## Measure speed, with peers beside, as ratios
	@$(PYTHON) -m bench

train-image: $(LOCKED) ## The training image of this commit, bit by bit the same each time: BASE=tensorflow-gpu [PUSH=HOST/NAME]
	@PYTHON="$(abspath $(PYTHON))" scripts/build-image "$(BASE)" "$(PUSH)"

# UPGRADE is what `make update` adds: options of uv, by which versions move.
UPGRADE ?=
# Installs nothing, neither before nor after: `make update` calls it with the checkout's own environment.
lock: ## Write requirements.txt anew from requirements.in (with the locked uv), and docker/images.lock
	@PATH="$(abspath $(VENV))/bin:$$PATH" uv pip compile requirements.in $(UPGRADE) --override requirements-override.txt --python-version 3.11 \
	  --python-platform x86_64-manylinux_2_31 --no-emit-index-url --no-annotate --generate-hashes --output-file requirements.txt --quiet
	@$(PYTHON) -m deploy.pins

lock-images: $(LOCKED) ## Write docker/images.lock anew: the digest of each image's tag (asks the registries)
	@$(PYTHON) -m deploy.pins

setup: $(LOCKED) ## Make the locked environment (.venv), nothing else

clean: ## Delete build/ (costs a restore from the store, nothing more)
	@rm -rf build

.PHONY: changed
changed:
$(LOCKED): $(CHANGED)
	@scripts/make-venv $(PYTHON3) $(VENV)
