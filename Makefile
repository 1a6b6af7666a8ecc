# Each command does its own set-up:
#   make run    compile DenseNet-121 for this machine and verify it
#   make test   lint and test
#   make bench  training steps and kernels beside PyTorch's, into benchmarks/
#   make bench-startup  the same from empty caches, torch.compile included, which takes its time
#   make docs   the documentation as a site, into build/site
# PYTHON is any Python 3.11 or newer; VENV is where everything is installed, and nowhere else. INDEX
# is where pip looks besides its own index, as for the CPU build of PyTorch; TORCH=any takes any
# build, with CUDA if it has that.

PYTHON ?= python3
VENV ?= .venv
INDEX ?=
TORCH ?= cpu
BIN := $(VENV)/bin
INSTALL := $(strip $(if $(INDEX),--index $(INDEX)) $(if $(filter any,$(TORCH)),--any-torch))
# Each command needs what it needs; these are extras of pyproject.toml. The stamps are made last: an
# interrupted installation leaves none, and the next make finishes it.
FOR_RUN := $(VENV)/.installed-torch
FOR_BENCH := $(VENV)/.installed-torch,bench
FOR_TEST := $(VENV)/.installed-dev
FOR_DOCS := $(VENV)/.installed-docs
ifneq ($(wildcard $(FOR_TEST)),)  # which is all of it
FOR_RUN := $(FOR_TEST)
FOR_DOCS := $(FOR_TEST)
FOR_BENCH := $(FOR_TEST)
endif

# What make bench measures: steps, steps of large batches, kernels; and make bench-startup, from empty
# caches. BENCH_OUT is the folder of the JSON files and the plots. PyTorch with jemalloc needs
# libjemalloc2.
BENCH ?= densenet121 resnet50 mobilenet_v2 --rounds 3 \
  --against none,backend,channels-last,jemalloc-channels-last,backend-bf16,jemalloc-bf16
BENCH_LARGE ?= densenet121 --batch 32 --rounds 2 \
  --against jemalloc,jemalloc-channels-last,backend-bf16,jemalloc-bf16
BENCH_KERNELS ?= densenet121 resnet50 mobilenet_v2 --against "" --kernels --rounds 2
BENCH_STARTUP ?= densenet121 --startup --rounds 2 \
  --against none,mvf,eager,channels-last,compile,compile-channels-last
BENCH_OUT ?= benchmarks

.PHONY: help run test bench bench-startup docs

help:
	@sed -n 's/^#   //p' Makefile

run: $(FOR_RUN)
	$(BIN)/bngen build --target llvm -mcpu=native
	$(BIN)/bngen verify
	@echo 'bngen is in $(BIN): . $(BIN)/activate puts it on your path'

# HYPOTHESIS_PROFILE=thorough make test draws many more, and new, examples.
# Three test processes share the cores, since some wait; idle OpenMP threads must sleep, not spin.
# Hundreds of processes import the package: its byte code is kept, whatever the shell says.
test: $(FOR_TEST)
	@$(BIN)/ruff check . || lint=1; \
	OMP_WAIT_POLICY=passive PYTHONDONTWRITEBYTECODE= \
	$(BIN)/python -m pytest -n 3 --dist worksteal $(TESTS) && exit $${lint:-0}

bench: $(FOR_BENCH)
	mkdir -p $(BENCH_OUT)
	$(BIN)/bngen bench $(BENCH) --json $(BENCH_OUT)/steps.json --plot $(BENCH_OUT)
	$(BIN)/bngen bench $(BENCH_LARGE) --json $(BENCH_OUT)/batch32.json
	$(BIN)/bngen bench $(BENCH_KERNELS) --json $(BENCH_OUT)/kernels.json --plot $(BENCH_OUT)/kernels

bench-startup: $(FOR_BENCH)
	mkdir -p $(BENCH_OUT)
	$(BIN)/bngen bench $(BENCH_STARTUP) --json $(BENCH_OUT)/startup.json

docs: $(FOR_DOCS)
	$(BIN)/python -m mkdocs build --strict

$(VENV)/.installed-%: pyproject.toml constraints.txt install.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "bngen needs Python 3.11 or newer: try make PYTHON=python3.11" >&2; exit 2; }
	@$(BIN)/python -c 'import pip' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python install.py $(INSTALL) '$*'
	@touch '$@'
