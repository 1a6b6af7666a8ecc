# Each command does its own set-up:
#   make run    compile DenseNet-121 for this machine and verify it
#   make test   lint and test
#   make bench  training steps and kernels beside PyTorch's, into benchmarks/
#   make bench-startup  the same from empty caches, torch.compile included, which takes its time
# PYTHON is any Python 3.11 or newer; VENV is where everything is installed.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Made last: an interrupted installation leaves no stamp, and the next make finishes it.
INSTALLED := $(VENV)/.installed

# What make bench measures: steps, steps of large batches, kernels; and make bench-startup, from empty
# caches. BENCH_OUT is the folder of the JSON files and the plots.
BENCH ?= densenet121 resnet50 mobilenet_v2 --against none,mvf,eager,channels-last --rounds 5
BENCH_LARGE ?= densenet121 --batch 32 --against eager,channels-last,jemalloc --rounds 2
BENCH_KERNELS ?= densenet121 resnet50 --against "" --kernels --rounds 3
BENCH_STARTUP ?= densenet121 --against none,mvf,eager,channels-last,compile --startup --rounds 5
BENCH_OUT ?= benchmarks

.PHONY: help run test bench bench-startup

help:
	@sed -n 's/^#   //p' Makefile

run: $(INSTALLED)
	$(BIN)/bngen build --target llvm -mcpu=native
	$(BIN)/bngen verify

# HYPOTHESIS_PROFILE=thorough make test draws many more, and new, examples.
# Two test processes share the cores, so idle OpenMP threads must sleep, not spin.
test: $(INSTALLED)
	@$(BIN)/ruff check . || lint=1; \
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 $(TESTS) && exit $${lint:-0}

bench: $(INSTALLED)
	mkdir -p $(BENCH_OUT)
	$(BIN)/bngen bench $(BENCH) --json $(BENCH_OUT)/latest.json --plot $(BENCH_OUT)
	$(BIN)/bngen bench $(BENCH_LARGE) --json $(BENCH_OUT)/batch32.json
	$(BIN)/bngen bench $(BENCH_KERNELS) --json $(BENCH_OUT)/kernels.json --plot $(BENCH_OUT)/kernels

bench-startup: $(INSTALLED)
	mkdir -p $(BENCH_OUT)
	$(BIN)/bngen bench $(BENCH_STARTUP) --json $(BENCH_OUT)/startup.json

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "bngen needs Python 3.11 or newer: try make PYTHON=python3.11" >&2; exit 2; }
	@$(BIN)/python -c 'import pip' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	@touch $@
