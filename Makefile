# make quickstart   train, score and report one experiment: no account, no server
# make up           start a Prefect server and a worker here, and deploy what deployment.yaml schedules
# make down         stop them; flow runs commit first
# make deploy       deploy again, after a change of deployment.yaml
# make test         run every test
# make test-fast    run those that take no minute: what one runs while working
# make check        format, lint, types, import contracts
# make clean        remove the virtual environment and caches (never runs/)

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
# its chatter, much of it about the machine's own index, goes to a file; where it fails the end of it is shown
LOGGED := >$(VENV)/pip.log 2>&1 || { tail -n 25 $(VENV)/pip.log >&2; echo "All that pip said: $(VENV)/pip.log" >&2; exit 1; }

.PHONY: quickstart up down deploy test test-fast check install clean

quickstart: $(VENV)/.installed
	$(BIN)/rl-research train experiment=cartpole_ppo

up down deploy: $(VENV)/.installed
	$(BIN)/rl-research $@

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(ARGS)

test-fast: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "not slow" -n auto --dist loadfile -q $(ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

install: $(VENV)/.installed-dev

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'rl_research needs Python 3.10 or newer; choose one with: make PYTHON=python3.11 ...')"
	$(PYTHON) -m venv $(VENV)
	@echo "Installing rl_research into $(VENV); pip's log is $(VENV)/pip.log"
	@$(PIP) -e . $(LOGGED)
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing what the tests need; pip's log is $(VENV)/pip.log"
	@$(PIP) -e '.[dev]' $(LOGGED)
	@npm install --silent --no-audit --no-fund --fetch-retries=1 --fetch-timeout=60000 --prefix $(VENV)/azurite azurite@3.35.0 \
	  || echo "Azurite could not be installed with npm: the tests of Azure will be skipped."
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
