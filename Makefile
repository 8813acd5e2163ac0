# `make demo` and `make test` do all their own set-up: a virtual environment in .venv with the tested versions.
VENV ?= .venv
PYTHON := $(VENV)/bin/python
ENV := $(VENV)/.installed

.PHONY: demo test lint install clean

install: $(ENV)

$(ENV): setup.py constraints.txt
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --constraint constraints.txt --editable ".[train,export,sentence-transformers,int8,test]"
	touch $(ENV)

demo: $(ENV)
	PYTHON=$(PYTHON) bash demo/run.sh

test: $(ENV)
	$(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu"

lint: $(ENV)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

clean:
	rm -rf $(VENV) data/demo_songs data/demo_backbones data/demo_cache runs/demo results/demo
