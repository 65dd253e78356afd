.DEFAULT_GOAL := help
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Test files are spread over processes (beyond four they would wait for each other's disk), in the order of their
# names: those with the fewest tests last, as is usual, would leave the longest of all, chaos, to one process.
PARALLEL ?= -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: help install run demos test test-all chaos laws fuzz lint audit format type ui notebook docs wheel dist bench clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(STAMP) ## make the environment and install hfexp with its development tools

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

run: install ## run the main job: train a small ViT on handwritten digits
	$(BIN)/hfexp

demos: install ## train the demonstrations that need no download beside simple baselines, for the table of README.md (ten minutes)
	$(BIN)/python -m benchmarks demos

test: install ## the tests, each behaviour once
	$(BIN)/python -m pytest -m 'not slow' $(PARALLEL)

chaos: install ## kill commands two hundred times and more (two hours): they must end as if undisturbed
	HFEXP_CHAOS=10 HFEXP_KILLS=7 $(BIN)/python -m pytest tests/chaos/test_chaos.py tests/chaos/test_kills.py

test-all: install ## all tests: every model family, faults, a second environment, the MLflow page
	$(BIN)/python -m pytest $(PARALLEL)

laws: install ## test each law on each task, and write docs/laws.md from the results (about ten minutes)
	PYTHONPATH=tests $(BIN)/python -m pytest -p laws_page -n 2 --dist loadgroup tests/invariants/test_laws.py

fuzz: install ## read 100,000 damaged files, records and commands (about ten minutes): each is read or refused, soon
	$(BIN)/python tests/fuzz.py

lint: install ## check style, format, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

audit: install ## look for known vulnerabilities in the pinned packages (needs pypi.org)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check pip-audit
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip

format: install ## mend style and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: install ## check types
	$(BIN)/pyright --pythonpath $(BIN)/python

ui: install ## open MLflow on the runs in outputs/
	$(BIN)/hfexp ui

notebook: install ## run docs/notebook.ipynb again, and keep its outputs
	$(BIN)/python -m benchmarks.notebook

docs: install ## build the documentation into docs/_build/html; a warning is an error
	$(BIN)/python -m sphinx -n -W --keep-going -b html docs docs/_build/html

wheel: install ## build the wheel into dist/
	$(BIN)/python -m build --wheel

dist: install ## build the sdist and the wheel into dist/, and check them for an index
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m pip install --quiet --disable-pip-version-check twine
	$(BIN)/twine check --strict dist/*

bench: install ## all benchmarks, against limits and peers; the machine should be idle
	$(BIN)/python -m benchmarks

clean: ## remove the environment, caches and builds (outputs/ is kept)
	rm -rf $(VENV) dist build docs/_build docs/reference docs/results .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
