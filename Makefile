# One command each for what is done often. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2
# The folders too: their times change when a file comes or goes.
CSRC := $(shell find csrc)
CODE := $(filter %.h %.cpp %.cuh %.cu,$(CSRC))

export PATH := $(CURDIR)/$(BIN):$(PATH)
# Not for demo and build: a newcomer's compiler may warn of what ours do not.
test lint cmake: export SNNKERN_WERROR := 1

.PHONY: help demo test lint format docs bench gpu build cmake clean
.DEFAULT_GOAL := help

help:  ## list the commands
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

demo: build  ## set up, then train, attack and certify a small network on handwritten digits
	$(BIN)/snnkern demo

test: lint $(VENV)/.peers  ## set up, check the style, run the tests
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile  # a file's fixtures are made once

lint: build  ## check formatting, style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/clang-format $(CODE) --dry-run -Werror

format: build  ## format all sources
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format $(CODE) -i

docs: build  ## build the documentation into build/docs, a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -q -d build/doctrees docs build/docs
	@echo "Documentation: build/docs/index.html"

bench: build  ## run the benchmarks
	$(BIN)/python -m pytest benchmarks --benchmark-enable --benchmark-only

# With the torch that is there and no network; WHEELS=dir has packages to compare with.
gpu:  ## on a machine with a GPU: build, test, sanitize and measure the CUDA kernels
	$(PYTHON) -m benchmarks.gpu

build: $(VENV)/.built  ## set up .venv and compile the kernels, or what changed of them

cmake: build  ## development build: compile_commands.json, CUDA sources checked where nvcc is
	$(BIN)/cmake -S . -B build/cmake -G Ninja -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python
	$(BIN)/cmake --build build/cmake --parallel $(JOBS)

clean:  ## remove .venv and everything built
	rm -rf $(VENV) build dist *.egg-info snnkern/_C.*.so \
	  .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "snnkern needs Python 3.11 or newer, $(PYTHON) is" \
	    "$$($(PYTHON) --version 2>&1): name another one with make PYTHON=python3.x" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# pip shows its progress to people and stays quiet in logs.
$(VENV)/.installed: requirements.txt $(VENV)/pyvenv.cfg
	@echo "Installing the pinned dependencies, torch is the large one"
	@if [ -t 1 ]; then quiet=; else quiet=--quiet; fi; \
	  $(BIN)/python -m pip install $$quiet --disable-pip-version-check -r requirements.txt
	@touch $@

# Without what they ask for: another torch would be among it.
$(VENV)/.peers: requirements-peers.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r $<
	@touch $@

# Only links the package into .venv: pip would compile everything anew each time.
$(VENV)/.linked: pyproject.toml snnkern/_version.py $(VENV)/.installed
	@SNNKERN_BUILD=none $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --no-build-isolation --no-deps --editable .
	@touch $@

$(VENV)/.built: setup.py $(CSRC) $(VENV)/.linked
	@echo "Compiling the kernels"
	@MAX_JOBS=$(JOBS) $(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@
