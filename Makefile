# The front door. Every target does the set-up it needs: python3 (3.10 or later) and make are enough.
#   HOST_PYTHON  the interpreter that .venv is made with
#   PYTHON       `make gpu` and `make sanitize`: an interpreter that has torch, triton and pytest
#   PIECE        `make gpu`: exact, cuda, emulator, sm90, tests, sanitize, bench, a single bench or profile instead of all
#   BUDGET       `make gpu` and `make sanitize`: seconds after which to stop; the next call goes on
#   GPU_OPTIONS  `make gpu` and `make sanitize`: further options, such as --device cpu
#   WORKERS      test processes at a time
# and what setup.py reads: FUSED_INCEPTION_CUDA, TORCH_CUDA_ARCH_LIST, CUDA_HOME, MAX_JOBS.

HOST_PYTHON ?= python3
WORKERS ?= auto

VENV := .venv
VENV_PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed
PIP_INSTALL := $(VENV_PYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

PIP_WHEEL := $(VENV_PYTHON) -m pip wheel --quiet --no-deps --no-build-isolation
ADAPTERS := timm pytorch-fid torch-fidelity torchmetrics lightning-utilities tqdm \
	huggingface-hub httpx2 httpcore2 anyio certifi click h11 hf-xet idna sniffio truststore

# One thread a worker: as many workers as cores, each with a thread pool of its own, only wait.
PYTEST := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(VENV_PYTHON) -m pytest \
	-n $(WORKERS) --maxprocesses 8 --benchmark-disable
CUDA_SOURCES = $(shell find csrc tests \( -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.h' \) 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint format gate gpu sanitize bench results compat clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

venv: $(STAMP) ## .venv with the package (editable) and every tool, pinned by constraints.txt

# torch comes first and by its exact pin, so that nothing later in the resolution can choose another.
# The package itself builds in .venv, with the pinned setuptools; so does the CUDA extension, where
# there is an nvcc. Objects are kept: after a change in csrc/ only what it touches is compiled again.
# The other packages' networks come without their dependencies, which name torch and torchvision;
# what they import is in the list.
$(STAMP): constraints.txt pyproject.toml setup.py $(shell find csrc -type f)
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
	env -u TRITON_INTERPRET $(PYTEST) tests bench --ignore tests/interpreter -m "not gpu and not interpreter" || status=1; \
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

gate: $(STAMP) ## compile every kernel offline for every architecture and print what came out
	$(VENV_PYTHON) -m tests.compile_gate
	$(if $(shell command -v nvcc),$(VENV_PYTHON) -m tests.cuda_gate,@echo "CUDA sources: skipped, nvcc is not on PATH")

# An interpreter given by PYTHON is used as it is: nothing is installed and .venv is not made.
ifdef PYTHON
gpu sanitize: GPU_PYTHON := $(PYTHON)
else
gpu sanitize: GPU_PYTHON := $(VENV_PYTHON)
gpu sanitize: $(STAMP)
endif
GPU_RUN = PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}" env -u TRITON_INTERPRET $(GPU_PYTHON)
PIECE ?= all

gpu: ## everything that needs a GPU: correctness, sanitizer, benches, targets; stops and goes on
	$(GPU_RUN) -m bench.gpu --piece $(PIECE) $(if $(BUDGET),--budget $(BUDGET)) $(GPU_OPTIONS)

sanitize: ## compute-sanitizer over a small set of calls of every kernel
	$(GPU_RUN) -m bench.sanitize $(if $(BUDGET),--budget $(BUDGET)) $(GPU_OPTIONS)

bench: $(STAMP) ## the short benches on whatever device there is, as a table
	$(VENV_PYTHON) -m fused_inception bench --quick

results: $(STAMP) ## write the results section of README.md anew from the result file that it names
	$(VENV_PYTHON) -m bench.readme --write

# One wheel, unpacked once, under two torches. The newer one need not have CUDA; the older one has.
COMPAT := $(CURDIR)/build/compat
COMPAT_TORCH := 2.11.0
COMPAT_PYTHON := $(COMPAT)/torch-$(COMPAT_TORCH)/bin/python
COMPAT_TESTS := $(addprefix tests/test_,extension.py registration.py factorized_conv2d.py import.py)
compat: $(STAMP) ## the same binary of the CUDA extension under torch 2.11 and under the pinned torch
	rm -rf $(COMPAT)/wheel $(COMPAT)/site
	FUSED_INCEPTION_CUDA=1 $(PIP_WHEEL) --wheel-dir $(COMPAT)/wheel .
	$(VENV_PYTHON) -m pip install --quiet --no-deps --target $(COMPAT)/site $(COMPAT)/wheel/*.whl
	test -x $(COMPAT_PYTHON) || $(HOST_PYTHON) -m venv $(COMPAT)/torch-$(COMPAT_TORCH)
	$(COMPAT_PYTHON) -m pip install --quiet torch==$(COMPAT_TORCH) numpy pytest expecttest hypothesis
	@status=0; for python in $(COMPAT_PYTHON) $(CURDIR)/$(VENV_PYTHON); do \
		cd $(COMPAT)/site; export PYTHONPATH=$(COMPAT)/site OMP_NUM_THREADS=1; \
		echo "== $$($$python $(CURDIR)/tests/compat.py $(COMPAT)/site)"; \
		$$python -m pytest -c $(CURDIR)/pyproject.toml --rootdir $(CURDIR) -o pythonpath= -q \
			$(addprefix $(CURDIR)/,$(COMPAT_TESTS)) -m "not gpu and not interpreter and not slow" \
			|| status=1; \
	done; exit $$status

clean: ## remove .venv, caches and everything built
	rm -f fused_inception/_C*.so fused_inception/_build.json
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
