# Everything a person does here: `make demo`, `make test`. `make` alone lists the targets.
# The first target that needs it sets up .venv from pyproject.toml; PYTHON=… chooses the interpreter.

.DEFAULT_GOAL := help
SHELL := /bin/sh

ENVIRONMENT := .venv/installed
BIN := .venv/bin
# Test processes. Each runs NumPy on one core, so two of them use two cores.
JOBS ?= 2
# Where `make demo` works, and what else to pass to it.
RUN ?= runs/demo
DEMO_OPTIONS ?=
# What else to pass to the cores' campaign: `make campaign CAMPAIGN_OPTIONS="--seed 7"`.
CAMPAIGN_OPTIONS ?=
PYTEST := OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

.PHONY: help demo test quick icarus campaign prove cores netlist docs lint format doctor setup clean distclean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## */make \1\t/' | expand -t 16

demo: $(ENVIRONMENT) ## train, generate, quantize, simulate, synthesize, report: under 10 minutes, into runs/demo
	@$(BIN)/python -m scripts.cli demo --out $(RUN) $(DEMO_OPTIONS)

test: lint ## style, types and all tests: under 10 minutes
	$(PYTEST) -m "not campaign"

quick: $(ENVIRONMENT) ## the tests without the slow ones
	$(PYTEST) -m "not slow and not campaign"

icarus: $(ENVIRONMENT) ## the tests that are about Icarus Verilog, the second Verilog simulator; `make test` skips them without it
	$(PYTEST) -m "icarus and not campaign"

campaign: $(ENVIRONMENT) ## the long campaigns: a million vectors a core, texts through whole decoders, training killed at 50 random moments, …
	@$(BIN)/python -m scripts.cli campaign $(CAMPAIGN_OPTIONS)
	$(PYTEST) -m campaign

prove: $(ENVIRONMENT) ## prove claims about the cores, each also against a circuit with a bug that it must refute
	@$(BIN)/python -m scripts.cli prove --bugs

netlist: $(ENVIRONMENT) ## every core again after synthesis, as cells of ECP5 and of iCE40, against the golden model: some minutes
	@$(BIN)/python -m scripts.cli netlist

cores: $(ENVIRONMENT) ## place and route every core alone, write the table of docs/hardware/cores.md: half an hour the first time
	@$(BIN)/python -m scripts.cli cores

docs: $(ENVIRONMENT) ## the documentation as a site, build/docs/index.html; a broken link is an error
	@$(BIN)/python -c "import mkdocstrings, material, latex2mathml" 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[docs]"
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "build/docs/index.html"

lint: $(ENVIRONMENT) ## style (ruff) and types (mypy)
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m mypy

format: $(ENVIRONMENT) ## format the sources
	$(BIN)/python -m ruff check --fix
	$(BIN)/python -m ruff format

doctor: $(ENVIRONMENT) ## which tools are found, which are missing, what to install
	@$(BIN)/python -m scripts.cli doctor

setup: $(ENVIRONMENT) ## only set up .venv

clean: ## remove build products and caches; runs/ and .venv stay
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean ## remove .venv too; runs/ stays
	rm -rf .venv *.egg-info

# A virtual environment holds absolute paths: one that was moved or copied with the project is set up again.
ifneq ($(shell cat $(ENVIRONMENT) 2>/dev/null),$(CURDIR))
.PHONY: $(ENVIRONMENT)
endif
$(ENVIRONMENT): pyproject.toml scripts/set_up.sh
	@PYTHON="$(PYTHON)" sh scripts/set_up.sh
