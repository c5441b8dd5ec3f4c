# Everything a user or CI runs. `make` alone lists it; scripts/setup.sh installs what a command needs, once.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help build image setup runtime demo demo-rag demo-qwen test check test-docs test-slow test-interop test-vllm test-containers bench readme clean

TARGET ?= x86-cpu
PY := .venv/bin/python
# The build of ONNX Runtime that the target's file asks for; TARGET is a shipped name or a YAML file.
ONNX = $(if $(filter onnx-gpu,$(firstword $(shell scripts/target.sh '$(TARGET)'))),onnx-gpu,onnx)
# The build of TARGET that was touched last: there may be several, of other models and tasks.
RUN = $(shell ls -td runs/*-$(lastword $(shell scripts/target.sh '$(TARGET)')) | head -n 1)
BENCHMARKS := $(patsubst benchmarks/%.py,%,$(filter-out benchmarks/_% benchmarks/readme.py benchmarks/pictures.py benchmarks/rag.py,$(wildcard benchmarks/*.py)))

help:  ## List the commands and their variables
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-15s %s\n", $$1, $$2} /^## /{print substr($$0, 4)}' $(MAKEFILE_LIST)

build:  ## Build TARGET's model: sets itself up, then prunes, exports and validates
	@scripts/engine.sh build '$(TARGET)' $(ARGS)

image:  ## Make the container images: the pipeline's for TARGET, and its device's
	@TARGET='$(TARGET)' scripts/engine.sh image

setup:  ## Install everything that building and testing need into .venv
	@scripts/setup.sh dev torch $(ONNX) gguf demo

runtime:  ## Install llama.cpp with factored weights (compiled once per machine, minutes)
	@scripts/setup.sh gguf

demo:  ## Install the demo's model and data (a second time nothing)
	@scripts/setup.sh demo

demo-rag:  ## Install the data of the tasks boolq, pubmedqa, medmcqa and disflqa
	@scripts/setup.sh demo-rag

demo-qwen: setup  ## Fetch Qwen2.5-Coder-0.5B-Instruct, a larger model, and print its path for --model
	@PYTHON=$(PY) scripts/demo-qwen.sh

test: check  ## Run every check and test (what CI runs); ARGS go to pytest
	$(PY) -m pytest -m "not slow" --numprocesses auto --maxprocesses 4 --dist loadfile $(ARGS)

check: setup  ## Run the static checks only: format, lint, types, imports, docstrings, Dockerfiles
	.venv/bin/ruff format --check . && .venv/bin/ruff check .
	$(PY) -m mypy && .venv/bin/lint-imports && .venv/bin/pydoclint -q sieve_edge benchmarks
	.venv/bin/hadolint docker/*.Dockerfile

test-docs: setup  ## Run every command of README.md and docs/, long ones on a pico model or with --quick
	$(PY) -m tests.docs.check_docs $(ARGS)

test-slow: setup  ## Run the tests that take minutes each
	$(PY) -m pytest -m slow $(ARGS)

test-interop: export ENGINE = local
test-interop: build  ## Load TARGET's exported folder with optimum and onnxruntime-genai, in environments of their own
	$(PY) tests/interop/check_interop.py $(RUN)/export/pruned .interop

test-vllm: build  ## Serve TARGET's fused checkpoint with vLLM, in an environment of its own
	$(PY) -m tests.vllm.check_vllm $(RUN) .interop

test-containers: setup  ## Build both images and run them on amd64 and emulated arm64, without Docker's engine (as root)
	docker/prove.sh

bench: setup  ## Run every benchmark in its short form; results in benchmarks/results
	set -e; for name in $(BENCHMARKS); do $(PY) -m benchmarks.$$name --quick; done

readme: setup  ## Write the generated parts of README.md and docs/measurements.md; ARGS=--check only looks
	$(PY) -m benchmarks.readme $(ARGS)

clean:  ## Remove the environment and caches; runs/ stays
	rm -rf .venv build dist *.egg-info .*_cache .hypothesis

##
## TARGET=NAME       shipped target or YAML file (default: x86-cpu)
## ARGS='...'        more arguments for the command, e.g. ARGS='--set tolerance=0.02'
## ENGINE=NAME       docker, podman or local (default: docker or podman if it can run the image that make image makes)
## PYTHON=PATH       interpreter that .venv is made with (default: python3.11, else python3)
## TORCH_INDEX=URL   package index to take torch from. On x86_64 Linux the default index serves torch for CUDA, several
##                   GB: without an NVIDIA GPU give the index of PyTorch's CPU builds, which PyTorch's
##                   "Start locally" page names.
