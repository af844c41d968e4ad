# Every target sets itself up: .venv is made on the first call and left alone after that (scripts/setup.sh).
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help install serve test demo-models lint bench requirements

MODELS_DIR := $(or $(ROUNDHOUSE_MODELS_DIR),models-data)
BENCHMARKS := $(filter-out _%,$(notdir $(basename $(wildcard bench/*.py))))
RUN := .venv/bin/python -m

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1\t/' | expand -t 22

install:  ## .venv with everything, for this machine (CUDA or CPU)
	@scripts/setup.sh

serve: install  ## serve ./models-data (or $ROUNDHOUSE_MODELS_DIR; demo models are made in it when it is empty)
	@# of a folder that is none, or may not be read, serve says so
	@if [ ! -e '$(MODELS_DIR)' ] || { [ -d '$(MODELS_DIR)' ] && [ -r '$(MODELS_DIR)' ]; }; then \
	  $(RUN) demo '$(MODELS_DIR)' --if-empty; fi
	@exec .venv/bin/roundhouse serve

test: install  ## the whole test suite; ARGS='-k discovery' for a part of it
	@$(RUN) pytest -n 2 --dist loadgroup --no-loadscope-reorder $(ARGS)

demo-models: install  ## the demo models, made in DIR=…
	@$(if $(DIR),,$(error Say where: make demo-models DIR=some/folder))
	@$(RUN) demo '$(DIR)'

lint: install  ## ruff, mypy, and the direction of imports
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@$(RUN) mypy
	@.venv/bin/lint-imports --no-logo

bench: install  ## every benchmark, one after the other; BENCHMARKS=swap for one
	@set -e; for name in $(BENCHMARKS); do echo "== $$name"; $(RUN) bench.$$name; done

requirements: install  ## renew the pinned requirements*.txt from requirements*.in
	@scripts/compile_requirements.sh
