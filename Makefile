# The commands of the project. Each sets up what it needs in .venv.
#
#   make quickstart    watch an embedding model being replaced, on the rendered data set
#   make upgrade-example  upgrade a gallery: docs/upgrade_your_gallery.md
#   make upgrade-example-pgvector  the same in Postgres: docs/stores.md
#   make text-example  upgrade a gallery of texts: docs/upgrade_texts.md
#   make test          run every test
#   make lint          ruff and mypy

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart upgrade-example upgrade-example-pgvector text-example test lint format clean

quickstart: $(VENV)/installed
	$(BIN)/python reproduce.py --config configs/suites/quickstart.yaml

upgrade-example: $(VENV)/installed-gallery
	PYTHON=$(BIN)/python docs/upgrade_example.sh

upgrade-example-pgvector: $(VENV)/installed-dev
	PYTHON=$(BIN)/python docs/upgrade_example_pgvector.sh

text-example: $(VENV)/installed-gallery
	PYTHON=$(BIN)/python docs/text_example.sh

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/installed-gallery: requirements.txt requirements-gallery.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-gallery.txt
	touch $(VENV)/installed $@

$(VENV)/installed-dev: requirements.txt requirements-gallery.txt requirements-dev.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $(VENV)/installed $(VENV)/installed-gallery $@
