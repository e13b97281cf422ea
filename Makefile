# Each target sets itself up: a .venv beside the code, filled by uv where there is one, else by pip.
# Needs Python >= 3.10, make and a package index.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
export OMP_NUM_THREADS ?= 2
export HF_HUB_OFFLINE ?= 1
export NO_ALBUMENTATIONS_UPDATE := 1

# Interpreters of the oldest and the newest Python are looked for on the PATH, then in pyenv.
OLDEST ?= 3.10
NEWEST ?= 3.13
PYENV_ROOT ?= $(HOME)/.pyenv
SETUP = @$(PYTHON) scripts/setup.py --venv $(VENV) $(if $(LOCKED),--locked)
LOCK := $(if $(LOCKED),requirements.lock)
DONE := $(VENV)/.installed$(if $(LOCKED),-locked)

.PHONY: install install-test install-dev demo test test-slow test-compat test-oldest test-newest \
	lock check bench gpu clean

install: $(DONE)
install-test: $(DONE)-test
install-dev: $(DONE)-dev

$(DONE): requirements.txt $(LOCK)
	$(SETUP) $<
	@touch $@

$(DONE)-test: requirements-test.txt requirements.txt $(LOCK)
	$(SETUP) $<
	@touch $(DONE) $@

$(DONE)-dev: requirements-dev.txt requirements-test.txt requirements.txt $(LOCK)
	$(SETUP) $<
	@touch $(DONE) $(DONE)-test $@

demo: install
	@$(RUN) scripts/demo.py

test: install-test
	$(RUN) -m pytest -n 2

test-slow: install-test
	$(RUN) -m pytest -m slow --timeout=3600

# The fast tests in an environment of their own: $(1) the Python, $(2) its folder, $(3) its versions.
define test-with
@for p in python$(1) $(PYENV_ROOT)/versions/$(1)*/bin/python; do \
	$$p -c '' 2>/dev/null || continue; \
	$$p scripts/setup.py requirements-test.txt --venv $(2) $(3) && exec $(2)/bin/python -m pytest -n 2; \
	exit 1; \
done; echo "NOT TESTED: no Python $(1) on the PATH or in $(PYENV_ROOT)/versions" >&2
endef

test-compat: test-oldest test-newest
test-oldest:
	$(call test-with,$(OLDEST),.venv-oldest,--oldest)
test-newest:
	$(call test-with,$(NEWEST),.venv-newest)

lock: test
	@$(RUN) scripts/setup.py --write-lock

check: install-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	-$(VENV)/bin/pip-audit -r requirements.txt --progress-spinner off

bench: install-dev
	$(RUN) benchmarks/run.py

# What a teacher is worth on CamVid, long enough to converge; an hour at most, on a GPU. Then the
# lane recipes side by side, on drawn scenes without LANES.
CAMVID ?= input/camvid
LANES ?=
LANE_ENCODER ?= resnet101
gpu: install
	$(RUN) scripts/fetch_weights.py tf_efficientnet_lite0 tf_efficientnet_lite2
	$(RUN) benchmarks/teaching.py --out output/teaching --jobs 4 --seconds 3600 -- \
		--model camvid_long --data_dir $(CAMVID)
	$(RUN) benchmarks/lanes.py --data_dir "$(LANES)" -- --encoder $(LANE_ENCODER)

clean:
	rm -rf $(VENV) .venv-oldest .venv-newest .pytest_cache .mypy_cache .ruff_cache .hypothesis
