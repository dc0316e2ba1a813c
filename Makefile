# make demo | test | check | bench: each sets up .venv first if it is not there.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench clean

PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3,$(shell \
  command -v $(p) >/dev/null && $(p) -c 'import sys; sys.exit(not (3,11) <= sys.version_info < (3,14))' 2>/dev/null && command -v $(p))))
BIN := .venv/bin
READY := .venv/.ready
RECORDS := runs/data/records/manifest.json
# One thread a process: on a few cores, the threads of several processes wait for each other.
ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

help:
	@echo "make demo   data, training on two Ray workers, verdict, evaluation table"
	@echo "make test   every test that this machine can run"
	@echo "make check  lint, types, import contracts, fast tests"
	@echo "make bench  benchmarks with their bars, as JSON lines"
	@echo "make clean  removes .venv and runs"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then \
	  echo "crossreid needs Python 3.11, 3.12 or 3.13, and none is on the PATH."; \
	  echo "Install one, or name it: make demo PYTHON=/path/to/python3.11"; exit 1; fi
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) lacks the venv module (on Debian: apt-get install python3-venv)."; exit 1; }
	@free=$$(df -Pk . | awk 'NR==2 {print int($$4/1048576)}'); \
	  echo "Setting up .venv with $$($(PYTHON) --version) at $(PYTHON): about 7 GB on disk ($$free GB free), two minutes."; \
	  if [ "$$free" -lt 9 ]; then echo "Too little disk: 9 GB must be free."; exit 1; fi
	@rm -rf .venv
	@$(PYTHON) -m venv .venv
	@PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]' 2> .venv/pip.log \
	  || { cat .venv/pip.log; echo "Installation failed; the lines above say why."; exit 1; }
	@touch $(READY)
	@echo "Ready."

$(RECORDS): | $(READY)
	@rm -rf runs/data
	$(ENV) $(BIN)/crossreid data synth runs/data/orbench
	$(ENV) $(BIN)/crossreid data ingest runs/data/orbench runs/data/records --size 96x48

demo: $(READY) $(RECORDS)
	$(ENV) $(BIN)/crossreid train configs/demo.yaml

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(ENV) $(BIN)/pytest -q -n 2 tests/unit tests/properties

test: check
	$(ENV) $(BIN)/pytest tests/distributed tests/integration tests/ray

bench: $(READY)
	@status=0; for file in tests/bench/bench_*.py; do $(ENV) $(BIN)/python $$file || status=1; done; exit $$status

clean:
	rm -rf .venv runs
