# `make run` and `make test` install everything they need; a second call installs nothing.
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= dev
# "" installs the newest versions that pyproject.toml allows.
CONSTRAINTS ?= constraints.txt
BASE ?= main
BIN := $(VENV)/bin
PYTEST := $(BIN)/pytest

.PHONY: run test test-all quick check docs help
.DEFAULT_GOAL := help

help:
	@echo "make run       the whole pipeline on the built-in sample"
	@echo "make test      ruff, codespell, mypy and the tests"
	@echo "make test-all  ruff, codespell, mypy and every test"
	@echo "make quick     ruff, codespell, mypy and the tests of what has changed since BASE=main, in a minute"
	@echo "make check     ruff, codespell and mypy"
	@echo "make docs      the documentation as a site, in site/"

run: $(VENV)/.installed
	@$(BIN)/pets run

test: check
	$(PYTEST) $(PYTEST_ARGS)

test-all: check
	$(PYTEST) --run-browser --run-slow --run-nightly $(PYTEST_ARGS)

quick: check
	@files=$$($(BIN)/python tests/helpers/selection.py $(BASE)) && \
	if [ -n "$$files" ]; then $(PYTEST) -n 2 $$files; fi

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy

docs: $(VENV)/.installed-docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is required. Use make PYTHON=python3.12")'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "Python's venv module is missing. Install it (Debian: apt install python3-venv)"; exit 1; }

# Falls back to pip if uv does not run, or if only pip's configuration sets the package index.
define install
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS:%=-c %) uv && \
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode $(CONSTRAINTS:%=-c %) -e $(1) || \
	{ echo "uv failed. Installing with pip."; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS:%=-c %) -e $(1); }
	@touch $@
endef

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing into $(VENV) (once; about a minute, 6 GB)."
	$(call install,.)

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing the development tools."
	$(call install,'.[$(EXTRAS)]')

$(VENV)/.installed-docs: $(VENV)/.installed
	@echo "Installing the documentation tools."
	$(call install,'.[docs]')
