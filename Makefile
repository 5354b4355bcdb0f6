# Needs only Python >= 3.11 and make: every target creates the virtual environment that it uses.
# Another Python: `PYTHON=python3.13 make test` (its environment is .venv-3.13; the default one is .venv).

PYTHON ?= python3
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# The python of an environment is a link to one that is older than all that is installed there.
MAKEFLAGS += --check-symlink-times

VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
VENV := $(if $(filter python3,$(PYTHON)),.venv,.venv-$(VERSION))
BIN := $(VENV)/bin
LOWEST := $(VENV)-lowest
# uv installs the packages of the demo in 20 seconds, with their bytecode; pip takes 70. pip installs uv.
GET_UV := -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
INSTALL = -m uv pip install --quiet --compile-bytecode $(SOURCES)
# Where the environment or pip.conf tells pip to look for packages, uv looks, too.
SOURCES = $(addprefix --find-links ,$(call of-pip,FIND_LINKS,find-links)) \
  $(addprefix --default-index ,$(call of-pip,INDEX_URL,index-url))
of-pip = $(or $(PIP_$1),$(shell $(PYTHON) -m pip config get global.$2 2>/dev/null))

# pyright's launcher would otherwise look up its newest release at every run.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

# Checked before any work: every goal but these two needs a Python that is new enough.
ifneq ($(filter-out help clean,$(or $(MAKECMDGOALS),$(.DEFAULT_GOAL))),)
ifeq ($(VERSION),)
$(error nc_jax needs Python 3.11 or newer, and "$(PYTHON)" does not run; name one that does: PYTHON=/path/to/python3 make $(MAKECMDGOALS))
endif
ifneq ($(shell $(PYTHON) -c 'import sys; print(sys.version_info >= (3, 11))'),True)
$(error nc_jax needs Python 3.11 or newer, and "$(PYTHON)" is Python $(VERSION); name a newer one: PYTHON=python3.12 make $(MAKECMDGOALS))
endif
endif

.PHONY: help
help:  ## say what the targets do
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

.PHONY: demo
demo: $(VENV)/.installed-experiments  ## create the environment, install, train on real handwritten digits
	$(BIN)/python -m experiments.nearest_etf

.PHONY: test
test: $(VENV)/.installed-dev  ## create the environment, install, run the quick tests
	$(BIN)/python -m pytest

.PHONY: test-slow
test-slow: $(VENV)/.installed-dev  ## run the tests that take longer, and the benchmarks on tiny problems
	$(BIN)/python -m pytest -m "slow or benchmark"

.PHONY: test-torch
test-torch: $(VENV)/.installed-dev $(VENV)/.installed-torch  ## install PyTorch, too, and run the tests that need it
	$(BIN)/python -m pytest -m torch

.PHONY: test-lowest
test-lowest: $(LOWEST)/.installed  ## run the quick tests with the lowest versions that pyproject.toml allows
	$(LOWEST)/bin/python -m pytest

.PHONY: test-all
test-all: $(VENV)/.installed-dev  ## run all of these tests at once
	$(BIN)/python -m pytest -m ""

.PHONY: coverage
coverage: $(VENV)/.installed-dev  ## say which lines of nc_jax no test runs
	$(BIN)/python -m pytest -m "not benchmark" --cov --cov-report=term --cov-report=html:.cache/coverage

.PHONY: lint
lint: $(VENV)/.installed-dev  ## ruff (rules and format) and pyright
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

.PHONY: bench
bench: $(VENV)/.installed-bench  ## run every benchmark; results go to benchmarks/results
	for name in nearest_frame implicit_gradient scaling train_step step_memory throughput replay federated orthogonal_logits hyperspherical draws collapse_metrics table; do \
	  $(BIN)/python -m benchmarks.$$name || exit 1; done

.PHONY: bench-gpu
bench-gpu: $(VENV)/.installed-bench  ## all that only a GPU shows, in one run; install jax for it first: docs/installing.md
	$(BIN)/python -m benchmarks.gpu

.PHONY: docs
docs: $(VENV)/.installed-docs  ## build the documentation into docs/_build/html
	$(BIN)/python -m sphinx -E -W --keep-going -b html docs docs/_build/html

.PHONY: clean
clean:  ## remove the environments, caches and build outputs (runs/ stays)
	rm -rf .venv .venv-* .cache .pytest_cache .ruff_cache .hypothesis build dist docs/_build

# A stamp says which extra is installed; it is stale once the project or a pin changes. Three extras bring another one.
$(VENV)/.installed-%: pyproject.toml constraints.txt $(BIN)/uv
	$(BIN)/python $(INSTALL) --python $(BIN)/python --constraint constraints.txt --editable '.[$*]'
	@touch $@ $(if $(filter dev docs bench,$*),$(VENV)/.installed-experiments)

# Lowest versions are meant of what pyproject.toml names; what that requires in turn is the newest.
$(LOWEST)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python $(GET_UV)
	$(LOWEST)/bin/python -m uv pip compile pyproject.toml --quiet $(SOURCES) --extra dev --resolution lowest-direct \
	  --output-file $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python $(INSTALL) --python $(LOWEST)/bin/python --constraint $(LOWEST)/lowest.txt --editable '.[dev]'
	@touch $@

$(BIN)/uv: $(BIN)/python$(VERSION)
	$(BIN)/python $(GET_UV)

# An environment of another Python version is replaced, a half-made one is removed.
$(BIN)/python$(VERSION):
	$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }
