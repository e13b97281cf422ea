# Each target sets itself up: a .venv beside the code, filled by uv where there is one, else by pip.
# Needs Python >= 3.10, make and a package index.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
export OMP_NUM_THREADS ?= 2
export HF_HUB_OFFLINE ?= 1
export NO_ALBUMENTATIONS_UPDATE := 1

.PHONY: install install-dev demo test test-slow check bench clean

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(VENV)/.installed: requirements.txt
	@PYTHON=$(PYTHON) scripts/install.sh requirements.txt
	@touch $@

$(VENV)/.installed-dev: requirements.txt requirements-dev.txt
	@PYTHON=$(PYTHON) scripts/install.sh requirements-dev.txt
	@touch $(VENV)/.installed $@

demo: install
	@$(RUN) scripts/demo.py

test: install-dev
	$(RUN) -m pytest

test-slow: install-dev
	$(RUN) -m pytest -m slow --timeout=3600

check: install-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	-$(VENV)/bin/pip-audit -r requirements.txt --progress-spinner off

bench: install-dev
	$(RUN) benchmarks/run.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
