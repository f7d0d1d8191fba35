PYTHON ?= python3
BIN := .venv/bin
# Many tests wait for processes: one worker more than cores.
WORKERS := 3

.PHONY: setup reproduce test test-slow gpu-check lint bench docs clean

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

# The tests that need a GPU, speed and memory of four sizes beside nanoGPT's, and Figure 1 at three of the paper's sizes in
# short runs.
gpu-check: setup
	CUBLAS_WORKSPACE_CONFIG=:4096:8 $(BIN)/pytest -m gpu tests/gpu tests/models/test_reductions.py
	$(BIN)/python -m train.bench --gpu
	$(BIN)/python -m train.sweep experiment=paper/qk_norm_short
	$(BIN)/python -m train.report runs/paper-qk_norm_short

bench: setup
	$(BIN)/python -m train.bench

docs: setup
	$(BIN)/python -m train.docs

clean:
	rm -rf runs build bench*.json
