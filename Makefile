# make demo and make test need only Python 3.11 or newer, make and a package index: each builds .venv on first use.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
.DEFAULT_GOAL := help
.PHONY: help demo test lab student handouts cifar lint bench browser clean

help:  ## show this help
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: $(VENV)/core  ## train, attack and harden a classifier on handwritten digits; writes runs/demo/index.html
	$(BIN)/robustviz demo --out runs/demo --force

test: $(VENV)/dev  ## run the test suite, with one lesson opened in Chromium if there is one
	$(BIN)/python -m pytest -q -n auto --dist loadfile -m 'not browser'

lab: $(VENV)/dev  ## open JupyterLab on the notebooks
	$(BIN)/jupyter lab --notebook-dir=notebooks

student: $(VENV)/dev  ## copy the lessons without solutions and outputs to runs/student
	$(BIN)/jupyter nbconvert --to notebook --output-dir=runs/student --ClearOutputPreprocessor.enabled=True \
	  --TagRemovePreprocessor.enabled=True --TagRemovePreprocessor.remove_cell_tags=solution notebooks/*.ipynb

handouts: $(VENV)/dev  ## write the lessons without solutions as HTML pages to runs/handouts
	$(BIN)/jupyter nbconvert --to html --template=classic --output-dir=runs/handouts \
	  --TagRemovePreprocessor.enabled=True --TagRemovePreprocessor.remove_cell_tags=solution notebooks/*.ipynb

cifar: $(VENV)/dev  ## execute copies of the lessons on CIFAR-10 (robustviz fetch cifar10) to runs/lessons-cifar10
	$(BIN)/python tools/notebooks.py --data cifar10 --out runs/lessons-cifar10

lint: $(VENV)/dev  ## check style, docstrings and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torchattacks pins an old requests that JupyterLab refuses, so it comes without its dependencies.
bench: $(VENV)/dev  ## measure speed as ratios to the floor and to other libraries
	$(BIN)/python -m pip install --quiet --no-deps torchattacks
	$(BIN)/python -m tools.bench

browser: $(VENV)/dev  ## open what the kit writes in a real Chromium (Debian: apt-get install chromium)
	$(BIN)/python -m pytest -q tests/browser

clean:  ## remove .venv, runs and caches (data/downloads stays)
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache

$(VENV)/bin/python:
	@echo "robustviz: making a virtual environment in $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "robustviz needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/core: pyproject.toml | $(VENV)/bin/python
	@echo "robustviz: installing the library into $(VENV) (PyTorch is large: a few minutes the first time)"
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/dev: pyproject.toml | $(VENV)/bin/python
	@echo "robustviz: installing the library, JupyterLab and the test tools into $(VENV)"
	$(BIN)/python -m pip install --quiet --editable '.[notebooks,distributed,dev]'
	@touch $@ $(VENV)/core
