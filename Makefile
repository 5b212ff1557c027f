PYTHON ?= python3
BIN := .venv/bin

.PHONY: install test check demo clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

check: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

test: check
	$(BIN)/pytest

demo: install
	$(BIN)/python examples/demo.py "$(DATA)"

clean:
	rm -rf .venv runs .mypy_cache .pytest_cache .ruff_cache
