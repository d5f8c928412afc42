# Everything happens in one virtual environment, .venv; each target first installs what it needs, once.
# Another interpreter: make install PYTHON=/path/to/python3.11

VENV := .venv
BIN := $(VENV)/bin

# The first interpreter that runs and has a version we support. Its name alone proves little: `python3` may be older, and a
# version manager leaves commands on the path that only say that nothing is installed.
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python; do \
	if $$p -c '$(SUPPORTED)' >/dev/null 2>&1; then echo $$p; break; fi; done)

INSTALL = $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install install-all quickstart test slow-test gpu-check lint docs clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

install: $(VENV)/core.stamp ## create .venv and install the package (T-Maze needs no more)

install-all: $(VENV)/dev.stamp ## the same, with every environment and the tools for development

quickstart: $(VENV)/core.stamp ## train RATE and a Decision Transformer on T-Maze, evaluate and plot them, in minutes
	$(BIN)/python TMaze_new/TMaze_new_src/quickstart.py

test: $(VENV)/dev.stamp ## run the tests
	$(BIN)/python -m pytest -q -n auto --dist loadfile

slow-test: $(VENV)/dev.stamp ## run the tests that take minutes
	$(BIN)/python -m pytest -q -m slow

gpu-check: $(VENV)/dev.stamp ## test, time and train on the GPU at hand; writes results/gpu.md
	$(BIN)/python benchmarks/gpu.py

lint: $(VENV)/dev.stamp ## check style, formatting, wording and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/check_wording.py
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/dev.stamp ## build the documentation in build/docs, and check its links
	$(BIN)/python -m sphinx -q -W --keep-going -b html -c docs . build/docs

clean: ## remove .venv and caches; data and checkpoints stay
	rm -rf $(VENV) .pytest_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(or $(PYTHON),false) -c '$(SUPPORTED)' 2>/dev/null || { \
		echo "error: Python 3.11, 3.12 or 3.13 is needed, found $(or $(PYTHON),neither on the path):" \
			"install it, or name it with PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

# A stamp is newer than the files it was made from exactly when there is nothing to install.
$(VENV)/core.stamp: EXTRAS :=
$(VENV)/dev.stamp: EXTRAS := [all,dev]
$(VENV)/%.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) -e '.$(EXTRAS)'
	@touch $@
