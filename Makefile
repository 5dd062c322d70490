PYTHON ?= python

.PHONY: check test bench chaos

check: ## lint, types, layers, unit tests
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	PYTHONPATH=prefect_parallelrun/runtime $(PYTHON) -c "from importlinter.cli import lint_imports_command as lint; lint()" --no-logo
	$(PYTHON) -m pytest tests/unit

test: ## all tests but the slow ones
	$(PYTHON) -m pytest

bench: ## ratios against peers, measured in one run
	$(PYTHON) benchmarks/overhead.py
	$(PYTHON) benchmarks/survival.py
	$(PYTHON) benchmarks/scale.py

chaos: ## faults at random moments; ROUNDS and SEED choose how many and which
	$(PYTHON) -m tests.chaos --rounds $(or $(ROUNDS),10) --seed $(or $(SEED),1)
