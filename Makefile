# Every target creates .venv where it is missing: Python 3.11 or newer with pip and make are all that is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help sweep test check bench calibrate soak gpu

help:  ## List the targets.
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "make %-9s %s\n", $$1, $$2 }'

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

sweep: $(READY)  ## Measure all nine mechanisms on this machine; on a CPU in under 4 minutes.
	$(BIN)/infsa-bench sweep

# Nothing of the models is about time: two processes at once. What measures needs the machine for itself.
test: $(READY)  ## Run the tests (half an hour on two cores).
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not soak and not gpu" --numprocesses 2 tests/models
	$(BIN)/python -m pytest -m "not soak and not gpu" --ignore tests/models

check: $(READY)  ## Formatting, lint, types, import rules, then the tests.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) test

bench: $(READY)  ## Time single attention layers, reference beside fast (ten minutes on two cores).
	$(BIN)/infsa-bench layers

calibrate: $(READY)  ## Simulate how often the regression gate is wrong (five minutes).
	$(BIN)/infsa-bench calibrate --out results/calibration

soak: $(READY)  ## The tests in their long versions.
	$(BIN)/python -m pytest -m "not gpu"

# No install, no network: the Python of .venv where there is one, else the machine's own with its torch.
GPU_PYTHON = $(or $(wildcard $(BIN)/python),$(PYTHON))

gpu:  ## The reference run on an NVIDIA GPU, as far as DEADLINE=24 minutes allow; DEVICE=cpu rehearses it.
	PYTHONPATH=$(CURDIR)/bench:$(CURDIR)/models:$(PYTHONPATH) $(GPU_PYTHON) -m infsa_bench reference-run \
		$(if $(DEVICE),--device $(DEVICE)) $(if $(STAGE),--stage $(STAGE)) $(if $(DEADLINE),--deadline $(DEADLINE)) \
		$(if $(RUN),--out $(RUN)) $(if $(OUT),--parts $(OUT)) $(if $(COMMIT),--commit $(COMMIT))
