# Every target does its own set-up in .venv; a second run installs nothing.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
DOCS_STAMP := .venv/.installed-docs
EXTRAS := simulation,demo,bench,text,onnx,dev

.PHONY: demo test test-slow check docs pages bench examples clean help

help:
	@echo "make demo   set up, run the quickstart (twenty devices, one a person), print the results table"
	@echo "make test   set up, run the tests but the slow ones (whole runs on a SuperLink: make test-slow)"
	@echo "make check  ruff, mypy, import rules, wheel contents"
	@echo "make docs   set up, build the documentation into site/"
	@echo "make pages  write the generated pages of docs/ again, from the settings and from benchmarks/results/"
	@echo "make bench  set up, measure device, codecs, cache, trainer, neighbours and fleet-scale into benchmarks/results/"

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "mobillm-flower needs Python 3.11 or later; run: make PYTHON=python3.11 demo"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/mobillm run examples/quickstart

# one process a core, one thread a process
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" --numprocesses auto --dist loadfile

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python .ci/check_wheel.py

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $(DOCS_STAMP)

docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

pages: $(STAMP)
	@set -e; for name in settings benchmarks; do \
		$(BIN)/python docs/generate_$$name.py > docs/reference/$$name.new; mv docs/reference/$$name.new docs/reference/$$name.md; done
	$(BIN)/python docs/generate_comparison.py
	$(BIN)/python docs/generate_language.py
	$(BIN)/python docs/generate_privacy_tables.py
	$(BIN)/python docs/generate_families.py

bench: $(STAMP)
	@set -e; for name in device codecs cache trainer neighbours fleet-scale; do echo "== $$name"; \
		$(BIN)/python -m benchmarks $$name --json benchmarks/results/bench_$$(echo $$name | tr - _).json; done

examples: $(STAMP)
	@set -e; for app in $(dir $(wildcard examples/*/pyproject.toml)); do echo "== $$app"; $(BIN)/mobillm run $$app; done

clean:
	rm -rf .venv build dist site .mypy_cache .ruff_cache .pytest_cache runs
