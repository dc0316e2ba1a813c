# make demo | test | check | prove | bench: each sets up .venv first if it is not there.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test check prove chaos bench dashboards manifests schema clean

SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3,$(shell \
  $(p) -c '$(SUPPORTED)' >/dev/null 2>&1 && echo $(p))))
BIN := .venv/bin
READY := .venv/.ready
RECORDS := runs/data/records/manifest.json
# What decides how the demo's data looks.
DRAWING := $(addprefix service/data/,synthetic.py people.py figure.py drawing.py ingest.py)
# One thread a process: on a few cores, the threads of several processes wait for each other.
ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

help:
	@echo "make demo   data, training on two Ray workers, verdict, evaluation table"
	@echo "make test   every test that this machine can run, but for the long proofs"
	@echo "make check  lint, types, import contracts, fast tests"
	@echo "make prove  every fault planted and named, healthy runs left alone, machines lost; an hour"
	@echo "make chaos  kills 100 processes of real runs, which must end as if nothing had been; half an hour"
	@echo "make bench  benchmarks with their bars, as JSON lines"
	@echo "make dashboards  writes Grafana's dashboards again, from service/telemetry/panels"
	@echo "make manifests  writes what deploy/kuberay and docker repeat of deploy/prometheus and deploy/grafana"
	@echo "make clean  removes .venv and the demo's data (runs/data); trained runs stay"

setup: $(READY)

# A .venv that can be used is updated, never deleted; one that is not ours is left alone.
# The constraints' relative path also reaches pip's build environment, whatever this folder is called.
$(READY): pyproject.toml constraints.txt
	@if [ -e .venv ] && [ ! -f .venv/pyvenv.cfg ]; then \
	  echo ".venv is not a Python environment (it has no pyvenv.cfg); move it away, then try again."; exit 1; fi
	@if $(BIN)/python -c '$(SUPPORTED)' 2>/dev/null; then \
	  echo "Updating .venv: pip install of what pyproject.toml and constraints.txt say."; \
	else $(MAKE) -s --no-print-directory .venv-new PYTHON="$(PYTHON)"; fi
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null
	@# pip compiles on one core. What is not compiled costs every process that loads it, where Python
	@# may not keep its own (PYTHONDONTWRITEBYTECODE). Packages hold some files that cannot be, and
	@# tests that nobody loads.
	@PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install -q --no-compile --disable-pip-version-check -e '.[dev]' 2> .venv/pip.log \
	  || { cat .venv/pip.log; echo "Installation failed; the lines above say why."; exit 1; }
	@$(BIN)/python -m compileall -q -j 0 -x '/(tests?|rllib)/' .venv/lib >/dev/null 2>&1 || true
	@touch $(READY)
	@echo "Ready."

.PHONY: .venv-new
.venv-new:
	@if [ -z "$(PYTHON)" ]; then \
	  echo "crossreid needs Python 3.11, 3.12 or 3.13, and none is on the PATH."; \
	  echo "Install one, or name it: make demo PYTHON=/path/to/python3.11"; exit 1; fi
	@"$(PYTHON)" -c '' 2>/dev/null || { echo "PYTHON=$(PYTHON) does not run; name a Python 3.11, 3.12 or 3.13."; exit 1; }
	@"$(PYTHON)" -c '$(SUPPORTED)' || { \
	  echo "PYTHON=$(PYTHON) is $$("$(PYTHON)" --version 2>&1); crossreid needs 3.11, 3.12 or 3.13."; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) lacks the venv module (on Debian: apt-get install python3-venv)."; exit 1; }
	@free=$$(df -Pk . | awk 'NR==2 {print int($$4/1048576)}'); \
	  echo "Setting up .venv with $$("$(PYTHON)" --version), $(PYTHON): about 7 GB on disk ($$free GB free), two minutes."; \
	  if [ "$$free" -lt 9 ]; then echo "Too little disk: 9 GB must be free."; exit 1; fi
	@rm -rf .venv
	@"$(PYTHON)" -m venv .venv

$(RECORDS): $(DRAWING) | $(READY)
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

# What starts Ray or several ranks runs a file at a time, two files beside each other, the longest
# first: nothing long is put behind it. The rest shares the cores, one test more than two, since some
# wait for a scrape.
LONG := tests/chaos tests/integration/test_demo.py tests/hosts tests/ray/test_submit.py \
  tests/watch/test_watched_runs.py tests/ray/test_train.py tests/ray/test_tune.py
test: check schema
	$(ENV) $(BIN)/pytest -n 3 -m "not prove and not ray" tests/integration tests/watch tests/deploy
	$(ENV) $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not prove" \
	  $(LONG) tests/distributed tests/gpu tests/ray

prove: $(READY)
	$(ENV) $(BIN)/pytest -q -n 2 -m prove tests/integration
	$(ENV) $(BIN)/pytest -q -m prove tests/ray tests/hosts
	$(ENV) $(BIN)/pytest -q -s -m prove tests/watch

# CHAOS_SEED=N CHAOS_KILLS=N repeats what it has found.
chaos: $(READY)
	$(ENV) $(BIN)/python -m tests.chaos

bench: $(READY)
	@status=0; for file in tests/bench/bench_*.py; do $(ENV) $(BIN)/python $$file || status=1; done; exit $$status

dashboards: $(READY)
	$(BIN)/python -m deploy.grafana.build

manifests: $(READY)
	$(BIN)/python -m deploy.kuberay.build
	$(BIN)/python -m deploy.compose

# Grafana Labs' types, for the check of the dashboards; without them that check is skipped, and says so.
schema:
	@if command -v npm >/dev/null && [ tests/watch/schema/package.json -nt tests/watch/schema/node_modules ]; then \
	  npm install --silent --no-package-lock --no-audit --no-fund --prefix tests/watch/schema \
	  || echo "npm install failed: the dashboards are not checked against Grafana's types."; fi

clean:
	@if [ -e .venv ] && [ ! -f .venv/pyvenv.cfg ]; then \
	  echo ".venv is not a Python environment (it has no pyvenv.cfg); it is left alone."; else rm -rf .venv; fi
	@rm -rf runs/data
