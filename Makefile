# Two commands matter: `make demo` and `make test`.  Both need make, git and a Python >= 3.11, and build .venv first
# where it is missing.  Installation is stamped: the second run starts at once and needs no network.
#
#   PYTHON=/path/to/python   the interpreter to build .venv with (default: the first that works, 3.11 upwards)
#   PIP_FLAGS=...            more flags for pip install; on Linux without a GPU, torch's small build is at
#                            PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"
#   PYTEST_FLAGS=...         more flags for pytest

SHELL := /bin/sh
PYTHON ?=
PIP_FLAGS ?=
PYTEST_FLAGS ?=
WORKERS ?= 2

BIN := .venv/bin
PIP_INSTALL := -m pip install --disable-pip-version-check --quiet $(PIP_FLAGS)
ARVIZ1_TESTS := tests/analysis/test_arviz_adapter.py

# Each process computes on one thread: the tests are many and small, and the workers share the cores.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
PYTEST := $(ONE_THREAD) MPLBACKEND=Agg $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-gpu test-arviz1 install-arviz1 lint types format docs bench constraints install install-dev \
	clean clean-venv

help:  ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*##  *\(.*\)/make \1 - \2/p' Makefile

demo: .venv/.installed  ## fit, compare and sample on real digits; prints tables, writes runs/demo/
	$(BIN)/pyro-dgm demo --output runs/demo

test: .venv/.installed-dev  ## everything that CI runs
	@$(MAKE) --no-print-directory install-arviz1
	@$(MAKE) --no-print-directory -j 2 docs lint types test-arviz1
	$(PYTEST) -n $(WORKERS) $(PYTEST_FLAGS) tests pyro_dgm

test-slow: .venv/.installed-dev  ## the tests marked slow
	$(PYTEST) -n $(WORKERS) -m slow $(PYTEST_FLAGS) tests pyro_dgm

test-gpu: .venv/.installed-dev  ## the tests that run on a CUDA device, the slow ones among them
	@$(BIN)/python -c "import sys, torch; torch.cuda.is_available() or sys.exit('no CUDA device here: nothing to test')"
	$(PYTEST) -m gpu $(PYTEST_FLAGS) tests

lint: .venv/.installed-dev  ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.installed-dev  ## mypy
	$(BIN)/mypy

format: .venv/.installed-dev  ## let ruff fix and format the tree
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/.installed-dev  ## build the documentation into docs/_build/html, warnings as errors
	$(ONE_THREAD) MPLBACKEND=Agg $(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

bench: .venv/.installed-dev  ## the benchmarks that need no extra and no download
	$(BIN)/python benchmarks/bench_import.py

# ArviZ 1.x needs Python >= 3.12, and the adapter's tests need neither torch nor pyro: a second, small environment.
test-arviz1:  ## the ArviZ adapter's tests against ArviZ 1.x, where a Python >= 3.12 is found
	@if [ ! -f $(ARVIZ1_TESTS) ]; then \
		echo "ArviZ 1.x: not tested, $(ARVIZ1_TESTS) does not exist"; \
	elif [ -f .venv-arviz1/.installed ] || .ci/find-python 3.12 >/dev/null; then \
		$(MAKE) --no-print-directory .venv-arviz1/.installed && \
		echo "ArviZ 1.x: $$(.venv-arviz1/bin/python -c 'import arviz; print(arviz.__version__)')" && \
		MPLBACKEND=Agg .venv-arviz1/bin/python -m pytest -q -p no:cacheprovider --noconftest $(ARVIZ1_TESTS); \
	else \
		echo "ArviZ 1.x: not tested, no working Python >= 3.12 found on the PATH or under pyenv"; \
	fi

# Installed before the first test runs, so that a red run leaves nothing to be installed later.
install-arviz1:
	@if .ci/find-python 3.12 >/dev/null; then $(MAKE) --no-print-directory .venv-arviz1/.installed; fi

constraints: .venv/.installed-dev  ## rewrite constraints.txt from what is installed
	@{ sed -n '/^#/p' constraints.txt; \
	   $(BIN)/python -m pip freeze --all --exclude-editable \
	   | grep -viE '^(pip|wheel)==|^#' | sed 's/^\(torch==[0-9.]*\)+.*/\1/'; } > constraints.tmp
	@mv constraints.tmp constraints.txt

install: .venv/.installed  ## build .venv with the package in it
install-dev: .venv/.installed-dev  ## the same with the tools for tests and documentation

.venv/.created:
	@python=$$(.ci/find-python 3.11 $(PYTHON)) || { \
		echo "no working Python >= 3.11 found: install one with its venv module, or give PYTHON=/path/to/python"; \
		exit 1; }; \
	echo "creating .venv with $$python"; \
	"$$python" -m venv .venv
	@touch $@

# Built without isolation, on the pinned setuptools, so that a reinstall after an edit needs no network either.
.venv/.installed: pyproject.toml constraints.txt | .venv/.created
	@echo "installing pyro_dgm and its pinned dependencies into .venv (the first time takes minutes)"
	@$(BIN)/python $(PIP_INSTALL) -c constraints.txt setuptools
	@$(BIN)/python $(PIP_INSTALL) -c constraints.txt --no-build-isolation -e .
	@touch $@

.venv/.installed-dev: pyproject.toml constraints.txt | .venv/.created
	@echo "installing pyro_dgm with its pinned test and documentation tools into .venv (the first time takes minutes)"
	@$(BIN)/python $(PIP_INSTALL) -c constraints.txt setuptools
	@$(BIN)/python $(PIP_INSTALL) -c constraints.txt --no-build-isolation -e '.[dev,docs]'
	@touch .venv/.installed $@

.venv-arviz1/.installed: constraints-arviz1.txt
	@python=$$(.ci/find-python 3.12) || { echo "no working Python >= 3.12 found"; exit 1; }; \
	echo "creating .venv-arviz1 with $$python"; \
	"$$python" -m venv .venv-arviz1
	@.venv-arviz1/bin/python $(PIP_INSTALL) -c constraints-arviz1.txt 'arviz>=1' \
		numpy xarray h5netcdf h5py matplotlib pytest
	@touch $@

clean:  ## remove what builds and tests leave behind
	rm -rf build dist *.egg-info docs/_build docs/gallery docs/generated docs/api/generated .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

clean-venv:  ## remove the environments
	rm -rf .venv .venv-arviz1
