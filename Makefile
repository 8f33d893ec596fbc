# The front door. Every target does the set-up it needs: python3 (3.10 or later) and make are enough.
#   HOST_PYTHON  the interpreter that .venv is made with
#   PYTHON       `make gpu` only: an interpreter that has torch, triton and pytest already
#   PIECE        `make gpu` only: exact, pair, ops or network instead of all
#   WORKERS      test processes at a time

HOST_PYTHON ?= python3
WORKERS ?= auto

VENV := .venv
VENV_PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed
PIP_INSTALL := $(VENV_PYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

ADAPTERS := timm pytorch-fid torch-fidelity torchmetrics lightning-utilities tqdm \
	huggingface-hub httpx2 httpcore2 anyio certifi click h11 hf-xet idna sniffio truststore

# One thread a worker: as many workers as cores, each with a thread pool of its own, only wait.
PYTEST := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(VENV_PYTHON) -m pytest \
	-n $(WORKERS) --maxprocesses 8 --benchmark-disable
CUDA_SOURCES = $(shell find csrc tests \( -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.h' \) 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint format gate gpu clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

venv: $(STAMP) ## .venv with the package (editable) and every tool, pinned by constraints.txt

# torch comes first and by its exact pin, so that nothing later in the resolution can choose another.
# The package itself builds in .venv, with the pinned setuptools. The other packages' networks come
# without their dependencies, which name torch and torchvision; what they import is in the list.
$(STAMP): constraints.txt pyproject.toml setup.py
	@$(HOST_PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed, $(HOST_PYTHON) is " + sys.version.split()[0])'
	$(HOST_PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) pip setuptools
	$(PIP_INSTALL) "$$(grep '^torch==' constraints.txt)"
	$(PIP_INSTALL) --no-build-isolation --editable '.[cli,test,dev]'
	$(PIP_INSTALL) --no-deps $(ADAPTERS)
	@touch $@

demo: $(STAMP) ## run Inception V3 unfused and fused on photographs, and compare
	$(VENV_PYTHON) -m fused_inception compare

# Two processes, because triton reads TRITON_INTERPRET once, when it is imported. Both always run; the
# target fails if either does.
test: $(STAMP) ## the whole test suite that needs no GPU: the main part, then Triton's interpreter
	@status=0; \
	echo "== main suite"; \
	env -u TRITON_INTERPRET $(PYTEST) tests --ignore tests/interpreter -m "not gpu and not interpreter" || status=1; \
	echo "== Triton kernels in the interpreter"; \
	TRITON_INTERPRET=1 $(PYTEST) tests/interpreter -m "not gpu" || status=1; \
	exit $$status

lint: $(STAMP) ## ruff (rules and format), mypy, clang-format
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m mypy
	$(if $(CUDA_SOURCES),$(VENV)/bin/clang-format --dry-run -Werror $(CUDA_SOURCES))

format: $(STAMP) ## rewrite the sources in the project's format
	$(VENV_PYTHON) -m ruff check --fix-only .
	$(VENV_PYTHON) -m ruff format .
	$(if $(CUDA_SOURCES),$(VENV)/bin/clang-format -i $(CUDA_SOURCES))

gate: $(STAMP) ## compile every Triton kernel offline for every architecture and print what came out
	$(VENV_PYTHON) -m tests.compile_gate

# PIECE=exact, pair, ops or network runs a part of it, where a machine is lent for minutes only.
PIECE ?= all
GPU_TESTS_all := tests --ignore tests/interpreter
GPU_TESTS_exact := tests/test_factorized_conv2d_gpu.py -k exact
GPU_TESTS_pair := tests/test_factorized_conv2d_gpu.py -k "not exact"
GPU_TESTS_ops := $(addprefix tests/test_,factorized_conv2d.py split_conv2d.py grid_reduction.py \
	conv2d_act.py registration.py precision.py)
GPU_TESTS_network := $(addprefix tests/test_,modules.py fuse.py models.py cli.py)
# An interpreter given by PYTHON is used as it is: nothing is installed and .venv is not made.
ifdef PYTHON
gpu: GPU_PYTHON := $(PYTHON)
else
gpu: GPU_PYTHON := $(VENV_PYTHON)
gpu: $(STAMP)
endif
gpu: ## the tests that need a CUDA device; PYTHON=... uses an interpreter that has torch and triton
	PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}" env -u TRITON_INTERPRET \
		$(GPU_PYTHON) -m pytest $(GPU_TESTS_$(PIECE)) -m gpu

clean: ## remove .venv, caches and everything built
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
