# The menu.  `make quickstart` and `make test` are all that a newcomer needs; both install what they use.

PYTHON ?= python3
VENV := .venv
FUZZ_SECONDS ?= 180
BIN := $(VENV)/bin
# uv looks where pip looks for wheels that lie on this machine.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
OURS := server clients/python examples tests protos/generate.py
NATIVE := $(shell find native -type f -not -name '*.md')

.DEFAULT_GOAL := help
.PHONY: help setup protos native fmt check test sanitize fuzz quickstart serve bench clean

help:  ## show this menu
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 14

setup: $(VENV)/.native  ## make .venv with both distributions and every tool

$(VENV)/.installed: pyproject.toml clients/python/pyproject.toml constraints.txt
	@PYTHON="$(PYTHON)" sh deploy/prerequisites.sh
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9'
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --group dev \
		--editable clients/python --editable .
	@touch $@
	@touch $(VENV)/.native

# Not when it was built just now, with everything else.
$(VENV)/.native: $(VENV)/.installed $(NATIVE)
	@newer=$$(find $^ -newer $@ 2>/dev/null || echo all); test -z "$$newer" || $(MAKE) --no-print-directory native

protos: setup  ## write the stubs anew after a change of a contract
	$(BIN)/buf format --write
	$(BIN)/python protos/generate.py

native: $(VENV)/.installed  ## build the native module anew
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --reinstall-package headrace-server --editable .
	@touch $(VENV)/.native

fmt: setup  ## format everything
	$(BIN)/ruff check --quiet --fix-only $(OURS)
	$(BIN)/ruff format --quiet $(OURS)
	$(BIN)/buf format --write

check: setup  ## format, lint, types, floors, contracts, repetition
	$(BIN)/ruff format --check --quiet $(OURS)
	$(BIN)/ruff check --quiet $(OURS)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/buf format --diff --exit-code
	$(BIN)/buf lint
	$(BIN)/buf breaking --against '.git#branch=main'
	$(BIN)/pylint --disable=all --enable=duplicate-code --score=n server/headrace_server clients/python/headrace

test: setup  ## all tests, with coverage
	$(BIN)/pytest --cov --cov-report=term:skip-covered --durations=15

fuzz: setup  ## feed what parses bytes from the network with everything but requests, for some minutes
	$(BIN)/python tests/native/fuzz/run.py --seconds $(FUZZ_SECONDS)

sanitize: setup  ## the C++ tests again, with sanitizers
	sh tests/native/sanitize.sh $(BIN)

quickstart: setup  ## train on handwritten digits, watch, predict: all over gRPC
	$(BIN)/python examples/quickstart.py

serve: setup  ## start a server on 127.0.0.1:50051 that keeps its data in .headrace
	$(BIN)/headrace-server serve

bench: setup  ## every benchmark, one after another; see tests/benchmarks/LOG.md
	@for file in tests/benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

clean:  ## remove what was built
	rm -rf $(VENV) build .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage*
