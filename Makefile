# Everything sets itself up: `make demo` and `make test` work from an empty clone.
#   EXTRA=cpu (default) or EXTRA=gpu picks the build of vLLM.
PYTHON ?= python3.11
EXTRA  ?= cpu
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed-$(EXTRA)
COMPILED := build/compiled
BENCHES := scheduler scheduler_actor dispatch hosted local simulate affinity alarms ledger

export RAY_USAGE_STATS_ENABLED := 0
export VLLM_NO_USAGE_STATS := 1
export HF_HUB_OFFLINE := 1

.PHONY: help setup demo test test-all check format compiled bench faults soak bench-peers clean

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(STAMP)  ## the virtual environment with pinned packages

$(STAMP): pyproject.toml constraints.txt constraints-gpu.txt overrides.txt scripts/setup.sh scripts/torch_cpu.sh
	PYTHON="$(PYTHON)" EXTRA="$(EXTRA)" VENV="$(VENV)" bash scripts/setup.sh
	@rm -f $(VENV)/.installed-* && touch $@

demo: $(STAMP)  ## a job of 240 agent tasks through a local and a hosted model
	@$(BIN)/agentcloud demo

test: $(STAMP)  ## the tests, as CI runs them
	@bash scripts/apt.sh
	@VENV="$(VENV)" bash scripts/test.sh

test-all: $(STAMP)  ## the tests that take minutes each, too
	@bash scripts/apt.sh
	@ALL=1 VENV="$(VENV)" bash scripts/test.sh

check: $(STAMP)  ## lint, format, strict types, import order
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p .types/agentcloud && for d in cluster agents tasks; do ln -sfn ../../$$d .types/agentcloud/$$d; done
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)  ## format the code
	$(BIN)/ruff check --fix-only -q . ; $(BIN)/ruff format -q .

# As an installed package is: with the scheduler's core compiled (setup.py).
$(COMPILED)/.done: $(STAMP) setup.py pyproject.toml $(wildcard cluster/*.py)
	@rm -rf build
	$(BIN)/uv pip install -q --no-deps --no-build-isolation --python $(BIN)/python --target $(COMPILED) .
	@touch $@

compiled: $(COMPILED)/.done  ## the package in build/compiled, the scheduler's core as machine code

bench: $(COMPILED)/.done  ## the benchmarks, side by side, ratios printed
	@mkdir -p bench/out
	@missed=""; for each in $(BENCHES); do \
	  PYTHONPATH=$(CURDIR)/$(COMPILED) $(BIN)/python -m bench.$$each || missed="$$missed $$each"; done; \
	  [ -z "$$missed" ] || { echo "bench: a bound was missed, or it failed:$$missed" >&2; exit 1; }

faults: $(STAMP)  ## kill every part of a job, 10 rounds each; writes docs/faults.md (three hours)
	$(BIN)/python -m bench.faults

soak: $(STAMP)  ## a job at full speed for 20 minutes: does anything grow?
	$(BIN)/python -m bench.soak

bench-peers: $(STAMP)  ## an environment of their own for Ray Serve LLM and LiteLLM
	PYTHON="$(PYTHON)" bash scripts/setup_peers.sh

clean:  ## remove what was built
	rm -rf $(VENV) .venv-peers .types build dist *.egg-info bench/out .pytest_cache .mypy_cache .ruff_cache
