# make demo: the main job on real data, on a fresh machine.  make test: everything that must hold.
PYTHON ?= python3
VENV ?= .venv
EDITABLE ?= -e
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: demo test docs chaos check format install browser clean fuzz load

demo: $(VENV)/.installed
	$(BIN)/hpsearch run examples/digits.yaml --workers 2 --store sqlite:///hpsearch.db

test: $(VENV)/.installed-dev browser check
	$(BIN)/python -m pytest -n 3

# Ten minutes and 1,000 faults on each database; make chaos MINUTES=1 FAULTS=100 is shorter.
MINUTES ?= 10
FAULTS ?= 1000
chaos: $(VENV)/.installed-dev
	PYTHONPATH=tests $(BIN)/python tests/chaos/driver.py sqlite --minutes $(MINUTES) --faults $(FAULTS)
	PYTHONPATH=tests $(BIN)/python tests/chaos/driver.py postgresql --minutes $(MINUTES) --faults $(FAULTS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/check-secrets
	$(BIN)/python scripts/check-advisories

# The documentation site, in site/. It fetches nothing from elsewhere; to search in it, serve it: .venv/bin/mkdocs serve.
docs: $(VENV)/.installed-dev
	$(BIN)/mkdocs build --strict

# Many more requests than make test sends, and every time others.
fuzz: $(VENV)/.installed-dev
	HPSEARCH_FUZZ_EXAMPLES=2500 $(BIN)/python -m pytest -s --timeout 3600 tests/api/test_fuzz.py

# Simulated workers against one server on PostgreSQL, 10 minutes; the figures are for benchmarks/RESULTS.md.
load: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.load --workers 1000 --minutes 10

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

install: $(VENV)/.installed

browser: $(VENV)/.installed-dev
	scripts/install-chromium $(BIN)/playwright

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt $(EDITABLE) '.[all]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install -c constraints.txt $(EDITABLE) '.[all,dev]'
	@touch $@

clean:
	rm -rf $(VENV) dist hpsearch.db hpsearch.db-* hpsearch.db.lock
