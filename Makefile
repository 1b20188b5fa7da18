# `make demo` and `make test` are all a fresh clone needs; each sets up .venv the first time and is quick after that.
PYTHON ?= python3
BIN := .venv/bin
# What .ci/run adds: the oracle extra (PyTorch's CPU build), for tests that run beside transformers.
EXTRAS ?= test

.PHONY: demo test bench clean

.venv/.base: pyproject.toml
	$(PYTHON) -c "import sys; sys.exit('mlxgpt needs Python 3.11 or newer: make PYTHON=python3.12') if sys.version_info < (3, 11) else 0"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/.test .venv/.test,oracle: .venv/.%: .venv/.base
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[$*]"
	touch $@

demo: .venv/.base
	$(BIN)/mlxgpt train --config tiny --out runs/demo --force
	$(BIN)/mlxgpt eval --model runs/demo --cursors 100 --examples 5
	@echo "report           runs/demo/report.html"

test: .venv/.$(EXTRAS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

# Speed as ratios to other tools, against benchmarks/baseline.json; for people, on a quiet machine.
bench: .venv/.test,oracle
	$(BIN)/python benchmarks/short.py

clean:
	rm -rf .venv build dist runs *.egg-info
