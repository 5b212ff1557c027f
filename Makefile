PYTHON ?= python3
BIN := .venv/bin
TWO := --numprocesses 2 --dist loadfile

.PHONY: install test test-long test-browser check faults demo clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
# the same OpenCV without windows, which needs no library of a display
	$(BIN)/python -m pip uninstall --quiet --yes opencv-python
	$(BIN)/python -m pip install --quiet --no-deps --force-reinstall --constraint constraints.txt opencv-python-headless
	touch $@

check: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

test: check
	OMP_NUM_THREADS=1 $(BIN)/pytest $(TWO) --ignore=tests/browser -m "not long"

# soak, learning, compilation, the commands of the documents: what takes the better part of a minute
test-long: install
	OMP_NUM_THREADS=1 $(BIN)/pytest $(TWO) --ignore=tests/browser -m long

# the report page, in a headless Chromium; LEANVIT_SCREENSHOTS names a folder for pictures of it
test-browser: .venv/browser
	tests/browser/browser.sh
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/browser

.venv/browser: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[browser]"
	touch $@

faults: install
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults --count 100 --write

demo: install
	$(BIN)/leanvit pretrain esvit_laptop --data sample --out runs/demo --overwrite
	$(BIN)/leanvit evaluate knn runs/demo --data sample
	$(BIN)/leanvit analyze report runs/demo --data sample --out runs/demo/report
	@echo "Backbone, curves, views and matched regions: runs/demo (curves.png, views.png, matches.png)"
	@echo "Open this page in a browser: runs/demo/report/report.html"

clean:
	rm -rf .venv runs screenshots .mypy_cache .pytest_cache .ruff_cache
