# make demo       set up .venv, draw the StreetClips data, evaluate Mask R-CNN with BlockCopy on it
# make test       the test suite but its slow tests;  make test-all: all of it
# make lint       ruff: faults and formatting
# make docs       the documentation as a site, in site/; fails at a broken link
#
# Variables: PYTHON (interpreter that makes .venv), VENV, CLIPS (validation clips to draw),
# DETECTRON2_DATASETS (data folder), JOBS (test processes, of one thread each).

PYTHON ?= python3
VENV ?= .venv
CLIPS ?= 8
JOBS ?= 2
DETECTRON2_DATASETS ?= datasets
BIN := $(VENV)/bin

export DETECTRON2_DATASETS

.DEFAULT_GOAL := help
.PHONY: help environment data demo test test-all lint docs

help:
	@sed -n 's/^# \{0,1\}//p' Makefile

environment:
	@PYTHON="$(PYTHON)" bash tools/install.sh "$(VENV)"

data: environment
	@$(BIN)/python -m blockcopy_d2.data.streetclips \
		--output "$(DETECTRON2_DATASETS)/streetclips" --split val --clips $(CLIPS)

demo: data
	@echo "==> python train_net.py --config-file configs/maskrcnn_blockcopy.yaml --eval-only"
	@$(BIN)/python train_net.py --config-file configs/maskrcnn_blockcopy.yaml --eval-only

test: environment
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -m "not slow" -n $(JOBS) --dist loadfile

test-all: environment
	@$(BIN)/python -m pytest tests

lint: environment
	@$(BIN)/ruff check . && $(BIN)/ruff format --check --quiet .

docs: environment
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet && echo "==> site/index.html"
