# Wattvend. Needs Python >= 3.11 and make; everything else comes through pip. `make help` lists all.
.DEFAULT_GOAL := help
SHELL := /bin/sh
PYTHON ?= python3
# Tests run in two processes, each with a stack of its own. PARALLEL= : in one, in order.
PARALLEL ?= -n 2 --dist loadfile
VENV := .venv
BIN := $(VENV)/bin
STACK_STAMP := $(VENV)/.stack-installed
DEV_STAMP := $(VENV)/.dev-installed
ARGS ?=
ONLY ?=
ROUNDS ?= 10

.PHONY: help
help: ## list all targets
	@echo "Wattvend: prepaid energy, event-sourced."
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- environment -----------------------------------------------------------------------------

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Wattvend needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1)."; \
	  echo "Install one and name it: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@echo "==> creating the environment in $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV) || { \
	  echo "$(PYTHON) has no venv module; on Debian: apt-get install python3-venv"; exit 2; }
	@touch $@

$(STACK_STAMP): requirements/stack.lock pyproject.toml | $(VENV)/.made
	@echo "==> fetching what the services and the local stack need (pinned with hashes)"
	@$(BIN)/python requirements/install.py stack
	@touch $@

$(DEV_STAMP): requirements/dev.lock $(STACK_STAMP)
	@echo "==> fetching what checking and testing need (pinned with hashes)"
	@$(BIN)/python requirements/install.py dev
	@touch $@

.PHONY: install
install: $(DEV_STAMP) ## the development environment, from the lock files

.PHONY: lock
lock: $(DEV_STAMP) ## resolve requirements/*.in anew into the lock files
	@for name in run stack dev; do \
	  $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	    --no-header --no-annotate requirements/$$name.in -o requirements/$$name.lock; done

# --- the product on one machine ------------------------------------------------------------------

.PHONY: demo
demo: $(STACK_STAMP) ## the whole product, live: a meter runs out, is cut off, is topped up, has power again
	@$(BIN)/python -m tools.demo $(ARGS)

.PHONY: up
up: $(STACK_STAMP) ## start the local stack and leave it running
	@$(BIN)/python -m tools.stack up $(ARGS)

.PHONY: down
down: $(STACK_STAMP) ## stop the local stack (its data stays; ARGS=--wipe removes it)
	@$(BIN)/python -m tools.stack down $(ARGS)

.PHONY: status
status: $(STACK_STAMP) ## what of the local stack runs, where, and where its logs are
	@$(BIN)/python -m tools.stack status $(ARGS)

# --- checks and tests --------------------------------------------------------------------------

.PHONY: format
format: $(DEV_STAMP) ## format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

.PHONY: gen
gen: $(DEV_STAMP) ## generate code from schemas/proto, and Grafana's dashboard from deploy/grafana/site.py
	@$(BIN)/python -m tools.schemas generate
	@$(BIN)/python -m deploy.grafana.site

.PHONY: schemas-record
schemas-record: $(DEV_STAMP) ## publish changed schemas: the next version into schemas/baseline
	@$(BIN)/python -m tools.schemas record

.PHONY: check
check: $(DEV_STAMP) ## format, lint, types, import rules, schema compatibility (Avro, protobuf), generated code fresh
	@$(BIN)/ruff format --check . || { echo "mend it: make format"; exit 1; }
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m tools.schemas check

.PHONY: test
test: check ## every test, with its own set-up (the README's second command)
	@$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

.PHONY: recovery
recovery: $(DEV_STAMP) ## only the faults of docs/reliability.md: kills, stops, restarts, each judged from outside
	@$(BIN)/python -m pytest tests/recovery $(PARALLEL) $(ARGS)

.PHONY: soak
soak: $(DEV_STAMP) ## the same faults ROUNDS times as often, and long property runs (an hour and more)
	@WATTVEND_SOAK=$(ROUNDS) WATTVEND_PROPERTY_EXAMPLES=3000 \
	  $(BIN)/python -m pytest tests/recovery tests/property --timeout 7200 $(ARGS)

.PHONY: bench
bench: $(DEV_STAMP) ## measure speed on this machine (ONLY=metering|curves|pipeline|vending|restart)
	@$(BIN)/python -m tools.bench $(ONLY)

.PHONY: clean
clean: ## remove what was built and fetched
	@rm -rf build $(VENV)
