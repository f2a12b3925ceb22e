# Everything goes into .venv in this folder; nothing else on the machine is changed. `make` alone lists what there is.
#
# PYTHON=python3.12    the Python that .venv is made with; otherwise the newest of 3.13, 3.12 and 3.11 that is found
# ARGS='...'           passed on to the command behind a target, for example: make train ARGS='--steps 200'
# OUT=runs/other       the run folder of `make train`

VENV := .venv
PY := $(VENV)/bin/python
DSV3 := $(PY) -m dsv3_mini.cli
OUT ?= runs/nano
ARGS ?=
NAME ?=

# Says that .venv is complete. Its name holds this folder, because a .venv that was copied or moved with its checkout
# still points to the old place.
STAMP := $(VENV)/.installed-$(shell pwd | cksum | cut -d ' ' -f 1)

.DEFAULT_GOAL := help
.PHONY: help install lab train test notebooks lint format bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: $(STAMP)  ## make .venv and install everything into it (the others do this themselves)

lab: $(STAMP)  ## open the lessons in JupyterLab; ends with Ctrl-C
	@$(DSV3) lab $(ARGS)

train: $(STAMP)  ## train the nano model into runs/nano (OUT=..., ARGS=...)
	@$(DSV3) train --preset nano --out $(OUT) $(ARGS) || { code=$$?; \
	  if [ $$code = 2 ] && [ -e $(OUT)/run.json ]; then \
	    echo "With make: 'make train OUT=$(OUT) ARGS=--resume' continues it, 'make train OUT=runs/NAME' starts another run." >&2; \
	  fi; exit $$code; }

test: $(STAMP)  ## run the whole test suite
	@$(PY) -m pytest $(ARGS)

notebooks: $(STAMP)  ## rebuild the lessons from notebooks/src, with the outputs of a clean run
	@$(PY) notebooks/build.py $(ARGS)

lint: $(STAMP)  ## check style and types
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

format: $(STAMP)  ## put the code into the project's style
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

bench: $(STAMP)  ## run a benchmark (NAME=...; without a name, list them)
	@$(PY) tests/benchmarks/run.py $(NAME) $(ARGS)

clean:  ## remove .venv and caches; runs and lessons stay
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info build

# torch goes first and alone: what pip then finds for this machine (the CPU or the CUDA build) is settled before
# anything else can ask for it, and it brings the setuptools that builds this package.
$(STAMP): pyproject.toml constraints.txt Makefile
	@if ! $(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	  found=; for python in $(or $(PYTHON),python3.13 python3.12 python3.11 python3); do \
	    if $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	      found=$$python; break; \
	    fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "No usable Python among: $(or $(PYTHON),python3.13 python3.12 python3.11 python3)." >&2; \
	    echo "dsv3-mini needs Python 3.11 or newer with its venv module (on Debian and Ubuntu: the package" >&2; \
	    echo "python3-venv). Install one, or name yours: make install PYTHON=/path/to/python3" >&2; \
	    exit 1; \
	  fi; \
	  echo "Making $(VENV) with $$($$found --version)"; \
	  rm -rf $(VENV) && $$found -m venv $(VENV) || exit 1; \
	fi
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip
	$(PY) -m pip install --disable-pip-version-check -c constraints.txt torch setuptools
	$(PY) -m pip install --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev]'
	@rm -f $(VENV)/.installed-*
	@touch $@
