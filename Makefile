PYTHON ?= python3
BIN := .venv/bin
# Many tests wait for processes: one worker more than cores.
WORKERS := 3

.PHONY: setup reproduce test test-slow lint bench docs clean

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

reproduce: setup
	$(BIN)/python -m train.sweep experiment=qk_norm optimizer.lr=1.4e-2,6e-2,3e-1
	$(BIN)/python -m train.report runs/qk_norm-lr

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-slow: setup
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m slow

bench: setup
	$(BIN)/python -m train.bench

docs: setup
	$(BIN)/python -m train.docs

clean:
	rm -rf runs build bench*.json
