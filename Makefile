# Every target works in a fresh clone: the environment is built first, once.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help install install-browser run labels compare runs test test-all test-browser lab refresh readme badges pretrain pretrain-without-labels benchmarks lint lock clean

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
TESTING := $(VENV)/.testing
PLAYWRIGHT := $(VENV)/.playwright

help:  ## show this help
	@echo "make TARGET [VARIABLE=value ...]"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-24s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "Variables of 'make run' (without them: the embedded example, a few minutes, offline):"
	@awk -F ' *## ' '/^#: / {sub("#: ", "", $$1); printf "  %-18s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  make run DATA=~/pets BACKBONE=ResNet50"
	@echo "  make run DATA=\"my photos\" NAME=photos-2 PARAMS=\"seed=3 steps=400\""
	@echo
	@echo "PYTHON=python3.12 chooses the Python (3.11 to 3.13) that the environment in $(VENV) is made from."

#: NAME             ## the run's name: results go to runs/NAME
#: DATA             ## your images: a folder of class folders (train/ val/ test/ around them or not), a table, an archive
#: ON_PROBLEM       ## exclude (what would spoil the answer), keep or stop
#: BACKBONE         ## a name in keras.applications (ResNet50, ...), a .keras file, hub:PRESET, or auto: MobileNetV2 for your images
#: BACKBONES        ## of make compare: networks, separated by commas; NAME=FILE for a weights file, NAME=None for random
#: WEIGHTS          ## imagenet, None or a weights file
#: PREPROCESSING    ## how a .keras file of your own wants its pixels
#: FEATURES_FROM    ## the layer whose output the features are, or auto (a classifier's head is cut off)
#: IMAGE_SIZE       ## pixels along an image's side
#: RESIZE           ## how images of another shape fit: crop, pad or stretch
#: SEED             ## of the split and of the training
#: CUT              ## where the layers that are taken end: auto, head (all) or a stage that is left out
#: STEPS            ## length of fine-tuning, in updates of the weights
#: UNFREEZE_FROM    ## the first stage that is fine-tuned, auto or all
#: LEARNING_RATE    ## of fine-tuning, the highest
#: MIN_LR_FACTOR    ## its factor at the first stage
#: AUGMENTATION     ## of the training images in fine-tuning: flip, crop, rotate, light (without it: none)
#: CLASS_WEIGHT     ## balanced: in training, rare classes count as much as frequent ones (without it: each image does)
#: BUDGET           ## of the study: quick, standard, thorough, or minutes
#: MARGIN           ## the difference in accuracy that would not matter, in points
#: NEW_IMAGES       ## a folder of images to predict
#: SHIFTED          ## a folder of the same classes under other conditions: another camera, place or year
#: EXPORTS          ## formats of the chosen classifier: savedmodel, onnx, litert
#: PARAMS           ## any parameters: "name=value name=value" (without spaces in a value)

# ---- the environment: what running takes, and on top of it what the tests take

pip = "$(PY)" -m pip install --quiet --disable-pip-version-check -c requirements.txt

install: $(INSTALLED)  ## build the environment (the other targets do it by themselves)

$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "Expected Python 3.11, 3.12 or 3.13. Received: PYTHON=$(PYTHON), which is $$($(PYTHON) --version 2>&1 | head -n 1)." >&2; \
	  echo "Name another one, for example: make $(or $(MAKECMDGOALS),run) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "Building the environment in $(VENV), once: 2.7 GB, a few minutes." >&2
	@$(PYTHON) -m venv "$(VENV)"
	@$(pip) setuptools
	@$(pip) --no-build-isolation -e .
	@touch "$@"

$(TESTING): $(INSTALLED)
	@$(pip) --no-build-isolation -e ".[test]"
	@touch "$@"

install-browser: $(PLAYWRIGHT)  ## add what drives a browser, for the tests of pages (Chromium itself comes from the system)

$(PLAYWRIGHT): $(TESTING)
	@$(pip) --no-build-isolation -e ".[browser]"
	@touch "$@"

# ---- what one does with it

# Every variable on the command line, other than make's own and those below, is a parameter of the notebooks: the
# runner names the nearest one to a mistyped name. (Not so those of the environment, whose NAME or DATA is not meant.)
# The shell reads the values ("$$DATA"), not make: spaces and quotes in them need no care.
given := $(foreach v,$(.VARIABLES),$(if $(findstring command,$(origin $v)),$v))
parameters := $(filter-out NAME PARAMS PYTHON VENV MAKE%,$(given))

run: $(INSTALLED)  ## execute 01 to 05 on your images or on the embedded example, and write a report
	@$(call with_parameters,helpers.run)

labels: $(INSTALLED)  ## then 06, too: how many labels? (a run that is complete goes on from there)
	@$(call with_parameters,helpers.run --labels)

compare: $(INSTALLED)  ## which network? BACKBONES="MobileNetV2,ResNet50" on your images, ranked by their frozen features
	@$(call with_parameters,helpers.networks)

define with_parameters
set -f; set --; \
	$(foreach v,$(parameters),set -- "$$@" -p "$$(echo $v | tr A-Z a-z)" "$$$v";) \
	$(if $(filter NAME,$(given)),[ -z "$$NAME" ] || set -- "$$@" -n "$$NAME";) \
	for pair in $(if $(filter PARAMS,$(given)),$$PARAMS); do \
	  set -- "$$@" -p "$${pair%%=*}" "$${pair#*=}"; done; \
	"$(PY)" -m $(1) "$$@"
endef

runs: $(INSTALLED)  ## list all runs: data, backbone, verdict, accuracy, seconds
	@"$(PY)" -m helpers.runs

# A file's tests stay together, as some share what they have made; the files come in the order of tests/conftest.py.
tests := -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(if $(CI),--durations=25)

test: $(TESTING)  ## run the tests
	@"$(PY)" $(tests)

test-all: $(TESTING)  ## run the slow tests, too: all networks of keras.applications, A2's stored outputs
	@"$(PY)" $(tests) -m "not browser"

test-browser: $(PLAYWRIGHT)  ## run the notebooks in a real JupyterLab, and look at the report on a phone (10 minutes)
	@"$(PY)" -m pytest tests/browser -m ""

lab: $(INSTALLED)  ## open the notebooks in JupyterLab
	@"$(PY)" -m jupyterlab notebooks/01_load_data.ipynb

refresh: $(TESTING)  ## execute the notebooks again and store their outputs, to be committed
	@"$(PY)" tests/refresh.py

readme: $(PLAYWRIGHT)  ## run the embedded example and put what came of it into README.md
	@"$(PY)" tests/readme.py

badges: $(TESTING)  ## put badges into README.md that open your copy at GitHub (REPOSITORY=owner/name, or the remote)
	@"$(PY)" tests/badges.py $(REPOSITORY)

pretrain: $(INSTALLED)  ## make the embedded example's network again, from letters and their classes (up to 30 minutes)
	@$(call full,A1_pretrain_a_backbone)

pretrain-without-labels: $(INSTALLED)  ## and the one that learned from letters without labels (up to 30 minutes)
	@$(call full,A3_pretrain_without_labels,-p epochs 6 -p run_dir runs/pretrain)

full = mkdir -p runs/pretrain && "$(PY)" -m papermill notebooks/$(1).ipynb runs/pretrain/$(1).ipynb \
	  -p full True $(2) --no-progress-bar --stdout-file /dev/stderr

benchmarks: $(TESTING)  ## print side-by-side timings
	@set -e; for file in tests/benchmarks/*.py; do echo "== $$file"; "$(PY)" "$$file"; done

lint: $(TESTING)  ## check style and format
	@"$(PY)" -m ruff check .
	@"$(PY)" -m ruff format --check .

lock: $(INSTALLED)  ## resolve requirements.txt again from pyproject.toml
	@$(pip) uv
	@"$(PY)" -m uv pip compile --quiet --universal --python-version 3.11 --extra test --no-emit-index-url \
	  --no-emit-find-links --custom-compile-command "make lock" pyproject.toml -o requirements.txt

clean:  ## remove the environment and caches; the runs stay
	rm -rf "$(VENV)" runs/.pixels runs/.activations runs/.unpacked build *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
