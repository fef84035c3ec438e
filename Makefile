# The environment is .venv; every target makes it when it is missing or older than pyproject.toml.
VENV    := .venv
PYTHON  := $(VENV)/bin/python
READY   := $(VENV)/.ready
TESTS   ?= tests
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-all targets lint bench docs clean

demo: $(READY)
	$(PYTHON) -m meshwright.cli.demo

test: $(READY)
	$(PYTHON) -m pytest -q -n 2 --dist worksteal -m "not slow" $(TESTS)

test-all: $(READY) targets
	$(PYTHON) -m pytest -q -n 2 --dist worksteal $(TESTS)

# An environment for each trainer that plans are exported to; one that cannot be made leaves its tests to skip.
targets: $(READY)
	$(PYTHON) tests/export/proof/envs/make.py

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(READY)
	$(PYTHON) benchmarks/run.py

docs: $(READY)
	$(PYTHON) docs/build.py

clean:
	rm -rf $(VENV) .targets build dist demo .pytest_cache .mypy_cache .ruff_cache

$(READY): pyproject.toml
	test -x $(PYTHON) || python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet torch==2.13.0
	$(PYTHON) -m pip install --quiet --editable ".[dev]"
	touch $@
