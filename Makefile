# `make demo` and `make test` do all their own set-up: a virtual environment in .venv with the tested versions.
VENV ?= .venv
PYTHON := $(VENV)/bin/python
ENV := $(VENV)/.installed

.PHONY: demo ablation test test-browser lint install clean

install: $(ENV)

$(ENV): setup.py constraints.txt
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --constraint constraints.txt --editable ".[train,export,sentence-transformers,int8,search,serve,test]"
	touch $(ENV)

demo: $(ENV)
	PYTHON=$(PYTHON) bash demo/run.sh

# What each part of the score in time is worth: configs/ablation.yaml, about an hour on two cores.
ablation: export HF_DATASETS_CACHE = data/ablation_cache
ablation: $(ENV)
	$(PYTHON) -m collap corpus render data/ablation_songs --train 1000 --test 500 --min_seconds 60 --max_seconds 90 --seed 7
	$(PYTHON) -m collap corpus render data/ablation_long --train 0 --validation 0 --test 40 --min_seconds 235 --max_seconds 245 --seed 7
	$(PYTHON) -m demo.small_backbones data/ablation_backbones --captions data/ablation_songs/train/metadata.jsonl
	OMP_NUM_THREADS=1 $(PYTHON) -m demo.cache_features configs/ablation_small.yaml --num_workers 2
	$(PYTHON) benchmarks/ablation.py configs/ablation_small.yaml --long data/ablation_long

test: $(ENV)
	$(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu and not browser"

# The search page in a real browser: Debian's Chromium, which apt brings if there is none. PAGE_BROWSER names another.
PAGE_BROWSER ?= /usr/bin/chromium
test-browser: export COLLAP_BROWSER = $(PAGE_BROWSER)
test-browser: $(VENV)/.browser
	test -x $(PAGE_BROWSER) || { apt-get update -q && apt-get install -y -q chromium; }
	test -x $(PAGE_BROWSER) || { echo "no $(PAGE_BROWSER); install Chromium, or name it with PAGE_BROWSER=" >&2; exit 1; }
	$(PYTHON) -m pytest -m browser tests/browser

$(VENV)/.browser: $(ENV)
	$(PYTHON) -m pip install --quiet --constraint constraints.txt --editable ".[browser]"
	touch $@

lint: $(ENV)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

clean:
	rm -rf $(VENV) data/demo_songs data/demo_backbones data/demo_cache runs/demo results/demo
