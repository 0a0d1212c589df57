# make demo   sets up everything, trains a small AlignMask on synthetic images, evaluates it, draws pictures
# make test   sets up everything, runs the tests
#
# PYTHON chooses the interpreter of the virtual environment; PIP_ARGS is passed to pip (e.g. --index-url ...); PROCESSES is
# how many run the tests (default: one per processor; 0: all in one).

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
PROCESSES ?= logical
bin := $(VENV)/bin
stamp := $(VENV)/.installed
native := CMakeLists.txt $(wildcard cmake/*.cmake core/*/* core/*/*/* bindings/*)
cpp := $(wildcard $(foreach ending,h cpp cuh cu,core/*/*.$(ending) core/*/*/*.$(ending) bindings/*.$(ending) tests/native/*.$(ending) tests/native/fuzz/*.$(ending) \
         tests/sanitize/*.$(ending) tests/simt/*.$(ending)))

.PHONY: help setup simt sanitize sanitize-simt demo test test-all lint format bench native-test fuzz cuda-check roofline test-gpu gpu-report bench-model mutate wheel matrix docs clean

help:  ## List what make can do
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(stamp)  ## Create .venv, install everything, build the extension (again, if its sources changed)

$(stamp): pyproject.toml $(native)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "$(PYTHON): Python 3.10 or newer is needed; set PYTHON=..."; exit 1; }
	@test -x $(bin)/python || { echo "== creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "== installing packages and building the extension (minutes the first time, then seconds)"
	@$(bin)/python -m pip install $(PIP_ARGS) --quiet "scikit-build-core>=0.11" "pybind11>=2.13" "cmake>=3.25" ninja
	@$(bin)/python -m pip install $(PIP_ARGS) --quiet --no-build-isolation --editable ".[train,analyze,lite0,onnx,test,lint,docs]"
	@touch $@

sanitize: setup  ## Run op suite, native tests and fuzzer under the address, undefined behaviour and thread sanitizers (long; docs/log.md)
	@PYTHON=$(abspath $(bin)/python) tests/sanitize/run address thread

sanitize-simt: simt  ## Run the CUDA kernels on the host under the address and thread sanitizers (minutes)
	@$(bin)/cmake --build $$(dirname $$(ls -t build/*/CMakeInit.txt | head -n 1)) --target simt_address simt_thread
	@$(bin)/python -m pytest -q --runslow tests/simt/test_sanitizers.py

demo: setup  ## Train, evaluate and draw on synthetic images; the results go to demo/
	@echo "== alignmask demo: ten minutes of training, then evaluation and pictures, into demo/"
	@$(bin)/alignmask demo

simt: setup  ## Build the CUDA kernels for the host, where the tests run them
	@echo "== building tests/simt"
	@$(bin)/cmake --build $$(dirname $$(ls -t build/*/CMakeInit.txt | head -n 1)) --target _simt
	@touch tests/simt/_simt.*.so  # a test asks whether it is newer than all sources

test: simt  ## Run the tests
	@echo "== pytest"
	@OMP_NUM_THREADS=1 $(bin)/python -m pytest -q -n $(PROCESSES) --dist loadfile --max-worker-restart 0 \
	  -o faulthandler_timeout=600 -o faulthandler_exit_on_timeout=true $(ARGS)  # a test that hangs shows where, and fails

test-all: simt  ## Run the tests, the slow ones too
	@$(bin)/python -m pytest -q --runslow $(ARGS)

mutate: simt  ## Plant faults at random and see whether a test notices (an hour); SAMPLE=200 SEED=1 ONLY=python/alignmask/loss
	@$(bin)/python -m tests.mutate.mutate $(foreach option,SAMPLE SEED ONLY WORKERS,$(if $($(option)),--$(shell echo $(option) | tr A-Z a-z) $($(option))))

wheel: setup  ## Build the sdist and wheels from it, twice, and test them installed; PYTHONS="3.10 3.11" CUDA=13
	@$(bin)/python -m tests.installed.wheels $(if $(PYTHONS),--pythons $(PYTHONS)) $(if $(CUDA),--cuda $(CUDA)) $(if $(PIP_ARGS),--pip=$(PIP_ARGS)) $(ARGS)

matrix: setup  ## Test wheels of dist/ under versions of torch (PYTHONS="3.11" TORCH="2.4.1 2.9.1"), or with all at its oldest (FLOORS=1)
	@$(bin)/python -m tests.installed.matrix $(if $(PYTHONS),--pythons $(PYTHONS)) $(if $(TORCH),--torch $(TORCH)) $(if $(FLOORS),--floors) $(if $(PIP_ARGS),--pip=$(PIP_ARGS)) $(ARGS)

native-test: setup  ## Build the core alone and run its C++ test
	@$(bin)/cmake -S . -B build/native -G Ninja -DPython_EXECUTABLE=$(abspath $(bin)/python) -DCMAKE_MAKE_PROGRAM=$(abspath $(bin)/ninja)
	@$(bin)/cmake --build build/native
	@$(bin)/ctest --test-dir build/native --output-on-failure

fuzz: setup  ## Look for calls that break the core, with libFuzzer (SECONDS=600; needs clang)
	@PYTHON=$(abspath $(bin)/python) tests/native/fuzz/run.sh $(or $(SECONDS),600)

nvrtc12 := build/nvrtc12/nvidia/cuda_nvrtc/lib

$(nvrtc12): | setup
	@echo "== fetching NVRTC 12.9, the last that compiles for V100"
	@$(bin)/python -m pip install $(PIP_ARGS) --quiet --no-deps --target build/nvrtc12 nvidia-cuda-nvrtc-cu12==12.9.86

cuda-check: setup $(nvrtc12)  ## Check the CUDA kernels without a GPU; ALL=1: nvcc, too, for every architecture
	@$(bin)/python bench/cuda_check.py $(if $(ALL),--all) $(ARGS)

roofline: setup $(nvrtc12)  ## Print the counted model of the CUDA kernels
	@$(bin)/python bench/roofline.py $(ARGS)

test-gpu: simt  ## Run the tests that need a GPU
	@$(bin)/python -m pytest -q tests/gpu --runslow $(ARGS)

# No setup: it needs no network, only an interpreter with torch; the environment's, if there is one and no other is named.
report_python = $(if $(filter file,$(origin PYTHON)),$(or $(wildcard $(bin)/python),$(PYTHON)),$(PYTHON))

gpu-report:  ## Test, time and profile everything on a GPU into one report (BUDGET=seconds; DEVICE=cpu: the motions)
	@$(report_python) bench/gpu/report.py --budget $(or $(BUDGET),540) --device $(or $(DEVICE),cuda) $(ARGS)

lint: setup  ## Check formatting, lint and types
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/clang-format --dry-run --Werror $(cpp)
	$(bin)/mypy

format: setup  ## Rewrite the sources in the project's format
	$(bin)/ruff check --fix .
	$(bin)/ruff format .
	$(bin)/clang-format -i $(cpp)

bench: setup  ## Time the ops against plain torch and what other peers are installed; one table
	@$(bin)/python bench/bench_all.py $(ARGS)

bench-model: setup  ## Time whole models beside Hugging Face's Mask2Former and their own floor
	@$(bin)/python bench/bench_model.py $(ARGS)

docs: setup  ## Build the documentation into build/site; a warning is an error
	@NO_MKDOCS_2_WARNING=1 $(bin)/mkdocs build --strict
	@echo "build/site/index.html"

clean:  ## Remove build products, not the environment
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
