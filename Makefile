PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/installed

.PHONY: demo test
demo: $(INSTALLED)
	$(VENV)/bin/fvit-export demo demo-bundle
	$(VENV)/bin/fvit-certify demo-bundle fvit/demo/samples --sigma 0.25 --n 1000 --out demo-out

test: $(INSTALLED)
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest --numprocesses auto --dist worksteal

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --editable '.[export,plots,dev]'
	touch $@
