# Everything runs in .venv, made on first use from requirements.lock. `make help` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
CONFIG ?= configs/quickstart.yaml
SET ?=
PROCESSES ?= 2

.PHONY: help install quickstart run test test-slow test-vllm test-quantised check lint types bench lock clean

help:  ## list the targets
	@awk -F ':.*##' '/^[a-z-]+:.*##/ {printf "  %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## make .venv and install everything from requirements.lock

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Python 3.11 or newer is needed, {sys.executable} is {v.major}.{v.minor}; name another with: make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv $(VENV) || { echo "making $(VENV) failed: install the venv module of $(PYTHON) (Debian: apt install python3-venv)"; exit 1; }
	@echo "installing from requirements.lock (a few minutes, once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock 2> >(grep -v '^WARNING: Location' >&2) || \
		{ echo "installation failed: see the message above; pip needs its package index, or a mirror named in its configuration"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable . 2> >(grep -v '^WARNING: Location' >&2)
	@touch $@

quickstart: $(INSTALLED)  ## run the whole line, on data and a model made here
	@$(BIN)/tuneline run configs/quickstart.yaml $(foreach value,$(SET),--set $(value))

run: $(INSTALLED)  ## run CONFIG=configs/NAME.yaml, with SET="a.b=c ..." to change values
	@$(BIN)/tuneline run $(CONFIG) $(foreach value,$(SET),--set $(value))

test: $(INSTALLED)  ## run the tests (install included), PROCESSES=2 at once with a thread each
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n $(PROCESSES) --dist loadfile $(ARGS)

test-slow: $(INSTALLED)  ## run the slow tests too: whole lines, two processes, kills (an hour or more on two cores)
	@$(BIN)/python -m pytest -m slow $(ARGS)

test-vllm: $(INSTALLED) .venv-vllm/installed  ## the tests against a real vLLM server (its CPU build, some GB, once)
	@$(BIN)/python -m pytest -m slow tests/vllm $(ARGS)

.venv-vllm/installed: requirements-vllm.lock
	@$(PYTHON) -m venv .venv-vllm
	@.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-vllm.lock 2> >(grep -v '^WARNING: Location' >&2)
	@touch $@

test-quantised: $(INSTALLED) .quantised/bitsandbytes  ## the tests of models in 8 and 4 bits (bitsandbytes, once)
	@PYTHONPATH=.quantised $(BIN)/python -m pytest -m "slow or not slow" tests/quantised tests/values/test_quantised.py $(ARGS)

.quantised/bitsandbytes:
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .quantised bitsandbytes==0.50.2 2> >(grep -v '^WARNING: Location' >&2)

check: lint types test  ## what CI runs

lint: $(INSTALLED)  ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(INSTALLED)  ## mypy
	@$(BIN)/mypy

bench: $(INSTALLED)  ## speed and memory side by side with TRL
	@$(BIN)/python -m benchmarks all

lock:  ## resolve pyproject.toml anew into requirements.lock
	@rm -rf .lock-venv && $(PYTHON) -m venv .lock-venv
	@.lock-venv/bin/python -m pip install --quiet 'torch==2.13.0'
	@.lock-venv/bin/python -m pip install --quiet '.[pipeline,dev,math,storage]'
	@{ sed -n '/^#/p' requirements.lock; .lock-venv/bin/python -m pip freeze --all --exclude tuneline --exclude pip | sed 's/^\(torch==[0-9.]*\)+cpu/\1/'; } > requirements.lock.new
	@mv requirements.lock.new requirements.lock && rm -rf .lock-venv

clean:  ## remove prepared and collected data, models, reports, work folders (DVC's cache has what stages made)
	@rm -rf data/prepared data/collected models reports .work
