# Every target sets up what it needs: `make test` on a fresh clone creates .venv, installs, and tests.
# VENV=path uses another environment, PYTHON=path makes it from another interpreter.

VENV ?= .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --no-input

SUPPORTED := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))
# The first interpreter that starts (a version manager may leave dead names on the path) and is supported.
PYTHON ?= $(firstword $(foreach p,python3.12 python3.11 python3.10 python3,\
    $(shell $(p) -c '$(SUPPORTED)' 2>/dev/null && echo $(p))))

.PHONY: install test test-slow test-wheel attack lint demo benchmark clean

# The stamp is written last, so an interrupted install is repeated.
STAMP := $(VENV)/.openworldsam-installed
install: $(STAMP)

$(STAMP): requirements.txt setup.py pyproject.toml $(wildcard tools/detectron2_wheel/*.py tools/detectron2_wheel/*.toml)
	@$(PY) -m pip --version >/dev/null 2>&1 \
	    || { $(or $(PYTHON),false) -c '$(SUPPORTED)' && $(PYTHON) -m venv $(VENV); } \
	    || { echo "error: no environment made in $(VENV); this needs Python 3.10 to 3.12 with venv (PYTHON=path picks one)" >&2; exit 1; }
	@$(PY) -c '$(SUPPORTED)' || { echo "error: $(VENV) is not Python 3.10 to 3.12; remove it or set VENV=path" >&2; exit 1; }
	$(PIP) install -c requirements.txt torch torchvision setuptools wheel
	@# Our build, recognised by its version label, is renewed; any other Detectron2 stays.
	@if $(PY) -c 'import detectron2' 2>/dev/null && ! $(PIP) show detectron2 2>/dev/null | grep -q '^Version:.*+a59f0563'; \
	    then echo "Keeping the Detectron2 that is already installed"; \
	    else set -x; $(PIP) install --no-build-isolation -c requirements.txt ./tools/detectron2_wheel; fi
	SAM2_BUILD_CUDA=0 $(PIP) install --no-build-isolation -r requirements.txt -e .
	@touch $@

# Optional packages of the page, the other prompt encoders, the exporters and Cityscapes' evaluator, for the tests alone.
EXTRAS := $(VENV)/.openworldsam-extras-installed
$(EXTRAS): $(STAMP)
	$(PIP) install --no-build-isolation -c requirements.txt -e '.[app,encoders,supervision,cityscapes]'
	@touch $@

# One process per core, at most four; each takes a gigabyte. All tests of a file run in one process and share fixtures.
test: $(EXTRAS)
	$(PY) -m pytest -q -rs -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder -m "not slow" tests

test-slow: $(EXTRAS)
	$(PY) -m pytest -q -rs -m slow --ignore tests/attack tests

# What users get: the wheel, built from the source distribution, in an environment of its own, used from an empty folder.
WHEEL := build/wheel
test-wheel: $(EXTRAS)
	rm -rf $(WHEEL)
	$(PY) -c "import setuptools.build_meta as build; build.build_sdist('$(WHEEL)')" >/dev/null
	$(PIP) wheel -q --no-deps --no-build-isolation -w $(WHEEL) $(WHEEL)/*.tar.gz
	$(PY) -m venv $(WHEEL)/env
	$(WHEEL)/env/bin/pip install -q -c requirements.txt torch torchvision setuptools wheel
	$(WHEEL)/env/bin/pip install -q --no-build-isolation -c requirements.txt ./tools/detectron2_wheel
	SAM2_BUILD_CUDA=0 $(WHEEL)/env/bin/pip install -q --no-build-isolation -c requirements.txt "$$(echo $(WHEEL)/*.whl)[app]"
	$(WHEEL)/env/bin/pip check
	OPENWORLDSAM_BIN=$(CURDIR)/$(WHEEL)/env/bin $(PY) -m pytest -q -rs -n logical --maxprocesses 4 tests/session

# Every reader with a thousand damaged files, every command killed fifty times: docs/reliability.md.
attack: $(EXTRAS)
	$(PY) -m pytest -q -rs tests/attack

lint: install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy openworldsam tools weights datasets

# make demo                                    a Shapes scene, with the weights that ship; SCENE=7: another scene
# make demo IMAGE="a.jpg b.jpg" PROMPTS="a black dog;grass" TASK=referring      photographs, public weights
# IMAGE="'my images/a.jpg'" has a space.
IMAGE ?=
PROMPTS ?=
SCENE ?= 152
TASK ?= all
SHAPES = --config shapes --scene $(SCENE)
PHOTOGRAPHS = --config released --input $(IMAGE)

# Passed through the environment, so that the shell does not expand quotes and dollars.
demo: export PROMPT_TEXTS = $(value PROMPTS)
demo: install
	@IFS=';'; set -f; set -- $$PROMPT_TEXTS; unset IFS; \
	$(PY) -m openworldsam segment $(if $(IMAGE),$(PHOTOGRAPHS),$(SHAPES)) $${1:+--prompts "$$@"} --task $(TASK) --output output/demo

# make benchmark DEVICE=cuda: on a GPU. docs/performance.md explains the numbers.
DEVICE ?= cpu
BENCHMARK_cpu = --precision fp32 bf16 --repeats 3 --images 1 SOLVER.IMS_PER_BATCH 1
BENCHMARK_cuda = --precision fp32 bf16 fp16 --compile --warmup 3 --repeats 20 --images 20
benchmark: install
	$(PY) -m openworldsam benchmark --config paper --against plain --device $(DEVICE) \
	    --output output/benchmark/$(DEVICE) $(BENCHMARK_$(DEVICE))

# Keeps the environment, which takes several gigabytes to fetch again.
clean:
	rm -rf output build *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
