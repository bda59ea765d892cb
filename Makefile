# make app    install what is needed into .venv and start the explorer in the browser
# make test   the same install, plus what the tests need, then the test suite (minutes)
# make check  as make test, with the slow tests: 17 architectures, all notebooks, long browser journeys
# make lint   lint, format check, type check
# Options:    make app PYTHON=python3.12 ARGS="--server.port 8600"; make test ARGS="-k zoo"; make test WORKERS=4

PYTHON ?= python3
ARGS ?=
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help app test check lint format

help:
	@sed -n '/^#/!q; s/^# //p' Makefile

app: $(VENV)/.installed
	$(BIN)/python -m streamlit run app.py $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "" $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The stamps are touched last, so an install that was cut off is taken up again.
$(VENV)/.installed: requirements.txt
	@command -v $(PYTHON) > /dev/null || { echo "$(PYTHON) was not found: install Python 3.11 or newer, or name yours as in: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("ispasp needs Python 3.11 or newer and $(PYTHON) is %d.%d: install a newer one, or name it as in: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt requirements-huggingface.txt $(VENV)/.installed
	$(PIP) -r requirements.txt -r requirements-dev.txt -r requirements-huggingface.txt
	@touch $@
