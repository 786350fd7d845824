# make run     the whole life of the cluster, rehearsed on this machine
# make test    every check
# make down    tear down, and stop the lab
VENV ?= .venv
PYTHON ?= python3
PARAMS ?= params/lab.yaml
APPROVE ?= all
PYTEST_ARGS ?= -n 3 --dist loadfile --no-loadscope-reorder

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --root-user-action=ignore

.PHONY: run test down lint open doctor clean help

help:
	@sed -n 's/^# make/make/p' Makefile

run: $(VENV)/.run
	@PATH="$(CURDIR)/$(BIN):$$PATH" hybridlab run --params $(PARAMS) --approve $(APPROVE)

down: $(VENV)/.run
	@PATH="$(CURDIR)/$(BIN):$$PATH" hybridlab run 900 --params $(PARAMS) --approve $(APPROVE)
	@$(BIN)/hybridlab lab stop

open: $(VENV)/.run
	@PATH="$(CURDIR)/$(BIN):$$PATH" hybridlab open --params $(PARAMS)

doctor: $(VENV)/.run
	@PATH="$(CURDIR)/$(BIN):$$PATH" hybridlab doctor --params $(PARAMS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy tests/live  # a run of its own: both test folders have a conftest.py
	$(BIN)/lint-imports
	$(BIN)/nbstripout --verify --keep-id runbooks/*.ipynb

test: lint
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pytest $(PYTEST_ARGS)

clean:
	rm -rf $(VENV) .venv-oci .mypy_cache .ruff_cache .pytest_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 …" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { \
	  rm -rf $(VENV); echo "venv is missing; on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }

$(VENV)/.run: pyproject.toml | $(BIN)/python
	@echo "installing hybridlab and what it needs into $(VENV) (once; a minute or two) …"
	@$(PIP) --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	@echo "installing hybridlab and the test tools into $(VENV) (once; a minute or two) …"
	@$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.run
