# Two commands do all the set-up: `make run` and `make test`. They need Python 3.11 and a package index, nothing else.
PYTHON ?= python3.11
BIN := .venv/bin
UV_VERSION := 0.13.9
INSTALL := UV_PYTHON_DOWNLOADS=never $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python
# --compile-bytecode: without it every process would compile torch and transformers anew where Python may not write its caches.
ARGS ?=
NEURON_PYTHON ?= python3
# In the neuron image that is its own; elsewhere name one that has the libraries.
NXD_SRC ?=

.DEFAULT_GOAL := help
.PHONY: help run test test-whole test-all test-neuron test-neuron-stand-in test-neuron-pins e2e coverage soak lint docs format bench lock clean

help:  ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: .venv/installed  ## fine-tune a small real model on this machine: about two and a half minutes on two idle cores (ARGS="--max-steps 50 ...")
	$(BIN)/hyperpod-lora run $(ARGS)

test: .venv/installed-dev  ## the quick tests, four to five minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --hypothesis-profile quick $(ARGS)

test-whole: .venv/installed-dev  ## whole runs, trainings and kills: the tests that CI runs besides, seven minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "whole and not slow" --timeout 600 $(ARGS)

test-all: .venv/installed-dev  ## every test that needs no cluster and no GPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not gpu and not cluster" --timeout 1200 $(ARGS)

e2e: .venv/installed-dev  ## tests on a Kubernetes with the Training Operator, 20 minutes (KUBECONFIG names it; ARGS="-m cluster" adds the slow ones)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 3 --dist worksteal -m "cluster and not slow" --timeout 900 tests/e2e $(ARGS)

coverage: .venv/installed-dev  ## branch coverage of the quick and the whole tests: 100 % of the pure core, 90 % of all, or it fails
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --timeout 600 -m "not slow and not gpu and not cluster" --cov --cov-report= $(ARGS)
	$(BIN)/python tests/project/pure_core.py

test-neuron:  ## the Trainium backend's own tests, where its libraries are (NEURON_PYTHON): never with our locks, which have none
	$(NEURON_PYTHON) -m tests.neuron $(ARGS)

test-neuron-stand-in: .venv-stand-in/installed  ## the same on a CPU, half an hour: NXD_SRC=…/src of github.com/aws-neuron/neuronx-distributed at tag v2.26.0
	@test -d "$(NXD_SRC)/neuronx_distributed" || { echo "NXD_SRC is '$(NXD_SRC)': give the folder src of github.com/aws-neuron/neuronx-distributed at tag v2.26.0" >&2; exit 2; }
	PYTHONPATH=$(CURDIR)/tests/neuron/stand_in:$(abspath $(NXD_SRC)) PJRT_DEVICE=CPU NEURON_TEST_SUBGROUPS=1 HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 \
	  .venv-stand-in/bin/python -m tests.neuron $(ARGS)

NEURON_IMAGE_RUNS := tests/train/neuron tests/job/agent tests/prepare/tokenize tests/prepare/chat tests/merge \
  tests/evaluate/test_generate.py tests/evaluate/test_loss.py tests/evaluate/test_chat.py tests/matrix/test_golden_losses.py

test-neuron-pins: .venv-neuron/installed  ## what the neuron image runs, on its transformers 4.57, peft 0.17 and numpy 1 (torch is the lock's)
	OMP_NUM_THREADS=1 .venv-neuron/bin/python -m pytest -q -n 2 --dist loadfile $(NEURON_IMAGE_RUNS) $(ARGS)

soak: .venv/installed-dev  ## kill a small training again and again and compare (ARGS="--kills 100 --seed 2 --processes 2")
	OMP_NUM_THREADS=1 $(BIN)/python tests/soak/soak.py $(ARGS)

lint: .venv/installed-dev  ## ruff, mypy strict, import-linter
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports --no-logo

docs: .venv/installed  ## docs/settings.md from the settings' own docstrings
	$(BIN)/python -m steps.settings.document > docs/settings.md.new && mv docs/settings.md.new docs/settings.md

format: .venv/installed-dev  ## let ruff put the code in form
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

bench: .venv/installed-dev  ## measure against what one would use instead; writes bench/RESULTS.md
	$(BIN)/python -m bench $(ARGS)

lock: .venv/uv  ## resolve all versions anew into requirements.lock, requirements-dev.lock and the neuron image's
	$(BIN)/uv pip compile -q --python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url \
	  --custom-compile-command "make lock" --all-extras --group build pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile -q --python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url \
	  --custom-compile-command "make lock" --all-extras --group build --group dev -c requirements.lock pyproject.toml -o requirements-dev.lock
	$(BIN)/uv pip compile -q --python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url \
	  --custom-compile-command "make lock" --override containers/neuron-overrides.txt \
	  containers/neuron-requirements.in -o containers/neuron-requirements.lock
	$(BIN)/uv pip compile -q --universal --python-version 3.12 --generate-hashes --no-annotate --no-emit-index-url \
	  --no-emit-package torch --custom-compile-command "make lock" --override containers/torchneuron-overrides.txt \
	  -c requirements.lock pyproject.toml -o containers/torchneuron-requirements.lock
	printf '%s\n' pytest pytest-timeout hypothesis | $(BIN)/uv pip compile -q --python-version 3.11 --generate-hashes \
	  --no-annotate --no-emit-index-url --custom-compile-command "make lock" -c requirements-dev.lock \
	  -c containers/neuron-requirements.lock - -o containers/neuron-tests.lock
	{ cat containers/neuron-requirements.in; grep -oE '^torch==[0-9.]+' requirements.lock; \
	  printf '%s\n' pytest pytest-timeout pytest-xdist hypothesis; } | $(BIN)/uv pip compile -q --python-version 3.11 \
	  --generate-hashes --no-annotate --no-emit-index-url --custom-compile-command "make lock" \
	  -c containers/neuron-requirements.lock - -o requirements-neuron.lock

clean:  ## remove the virtual environment and caches (runs stay in .lora: see `hyperpod-lora clean`)
	rm -rf .venv .venv-stand-in .venv-neuron .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage htmlcov bench-results

.venv/uv:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@touch $@

.venv/installed: .venv/uv requirements.lock pyproject.toml
	$(INSTALL) --no-deps --require-hashes -r requirements.lock
	$(INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

# What the neuron image has beside its lock, from the package index: 7 GB, since torch brings CUDA. neuronx_distributed is on none.
.venv-stand-in/installed: .venv/uv containers/neuron-requirements.lock containers/neuron-tests.lock
	UV_PYTHON_DOWNLOADS=never $(BIN)/uv venv --quiet --clear --python $(PYTHON) .venv-stand-in
	$(BIN)/uv pip install --quiet --python .venv-stand-in/bin/python torch==2.8.0 torch_xla==2.8.1 tenacity scipy 'optimum~=2.0.0'
	$(BIN)/uv pip install --quiet --python .venv-stand-in/bin/python --no-deps --require-hashes -r containers/neuron-requirements.lock
	$(BIN)/uv pip install --quiet --python .venv-stand-in/bin/python --no-deps --require-hashes -r containers/neuron-tests.lock
	@touch $@

.venv/installed-dev: .venv/installed requirements-dev.lock
	$(INSTALL) --no-deps --require-hashes -r requirements-dev.lock
	@touch $@

.venv-neuron/installed: .venv/uv requirements-neuron.lock
	$(BIN)/uv venv --quiet --clear --no-python-downloads --python $(BIN)/python .venv-neuron
	$(BIN)/uv pip install --quiet --compile-bytecode --python .venv-neuron/bin/python --no-deps --require-hashes -r requirements-neuron.lock
	@touch $@
