# Two commands matter: `make demo` and `make test`. Both set themselves up on a bare machine.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
STUDY ?= virtual
DATA ?=
OUTPUT ?= demo

.PHONY: help setup demo test lint soak

help:
	@echo "make demo [STUDY=heart|eicu|physionet2012 DATA=folder]   four hospitals and a coordinator, one private study"
	@echo "make test                                                all checks and tests"
	@echo "make soak                                                long campaigns"

setup: $(STAMP)

# torch first and alone: its exact version is found as a CPU build, a range would bring the CUDA one.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(STAMP)

demo: setup
	$(BIN)/fedtwin simulate demo --study $(STUDY) $(if $(DATA),--data $(DATA)) --output $(OUTPUT)

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Two at a time, except what starts processes of its own and fills the machine by itself.
test: lint
	$(BIN)/pytest -q -n 2 -m "not slow"
	$(BIN)/pytest -q -m slow

soak: setup
	FEDTWIN_SOAK=1 $(BIN)/pytest -q tests
