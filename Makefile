# Each target makes its own virtual environment from constraints.txt and does nothing twice.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RECIPE ?= recipes/quickstart.yaml
ARGS ?=
PROCESSES ?= 2

.DEFAULT_GOAL := help
.PHONY: help run test lint docs bench clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */  make \1	/' | expand -t 16

run: $(VENV)/.user  ## quantise a real model in three ways and measure it in 12 languages (RECIPE=… ARGS=…)
	@$(BIN)/onggi run $(RECIPE) $(ARGS)

test: $(VENV)/.developer  ## the tests, in two processes (PROCESSES=0: in this one)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(PROCESSES)

lint: $(VENV)/.developer  ## format, lint, types and the floors of the house
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

docs: $(VENV)/.developer  ## the option tables of docs/, from the code
	@$(BIN)/python docs/generate.py

bench: $(VENV)/.developer  ## side by side with the peers; writes docs/benchmarks/ (some hours)
	@$(BIN)/python bench/quantize.py
	@$(BIN)/python bench/effort.py
	@$(BIN)/python bench/distill.py
	@$(BIN)/python bench/quantize_gguf.py
	@$(BIN)/python bench/report.py
	@$(BIN)/python bench/evaluate.py
	@$(BIN)/python bench/text.py
	@$(BIN)/python bench/pretrain.py
	@$(BIN)/python bench/starts.py
	@$(BIN)/python bench/finetune.py
	@$(BIN)/python bench/rate.py --label-studio
	@$(BIN)/python -m pytest -m long

clean:  ## remove the environments, not the runs
	@rm -rf $(VENV) .venv-bench

$(VENV)/.user: pyproject.toml constraints.txt setup.sh
	@PYTHON=$(PYTHON) bash setup.sh $(VENV) user

$(VENV)/.developer: pyproject.toml constraints.txt setup.sh
	@PYTHON=$(PYTHON) bash setup.sh $(VENV) developer
