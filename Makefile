# Everything is installed into .venv and built under .cache; nothing outside this folder is touched, and nothing needs root.
#
#   make install             create .venv and install the core, every plugin and the development tools (again only when inputs change)
#   make demo                train on the phantom, attack what was trained, and write a report
#   make evidence [ARGS=...] the default matrix of attacks into evidence/default, on two cores; goes on where it stopped; ARGS="--budget 30"
#   make test [ARGS=...]     all tests of the core and the plugins; ARGS goes to pytest
#   make drills [ARGS=...]   failure drills (docs/failures.md): processes are killed, networks stall, disks fill up; on every engine
#   make bench [ARGS=...]    the benchmarks, beside peers (requirements/peers.txt) where those install; ARGS=--full for every size
#   make lint                ruff, mypy (strict for the core), import-linter
#   make alone P=<plugin>    wheels of the core and of that plugin in an environment of their own; runs the plugin's tests there
#   make alone-all           the same for every plugin, one after another
#   make clean               remove what was built; .venv stays
#
# PYTHON    the interpreter .venv is made with, 3.11 to 3.13.
# PIP_ARGS  further arguments of pip. On Linux the package index serves torch with CUDA; for the much smaller CPU build:
#             make install PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"

SHELL := /bin/bash
SUPPORTED := import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,$(shell $(p) -c '$(SUPPORTED)' 2>/dev/null && echo $(p))))
PIP_ARGS ?=
ARGS ?=

VENV := .venv
PY := $(VENV)/bin/python
PIP_BARE := $(PY) -m pip install --disable-pip-version-check --quiet $(PIP_ARGS)
PIP := $(PIP_BARE) -c requirements/constraints.txt
INSTALLED := $(VENV)/.installed
PEERS := .cache/peers/.installed
PLUGINS := $(patsubst %/pyproject.toml,%,$(wildcard plugins/*/*/pyproject.toml))
BUILD_PYFHEL := plugins/aggregators/he_pyfhel/scripts/build_pyfhel.py
INPUTS := pyproject.toml pppml_core/__init__.py $(wildcard requirements/*.txt) $(PLUGINS:=/pyproject.toml) $(BUILD_PYFHEL)

# One torch thread and no display: what bit-identical results and a fair count of two cores depend on.
QUIET := OMP_NUM_THREADS=1 MPLBACKEND=Agg

.PHONY: install demo evidence test drills bench lint alone alone-all constraints clean
.DEFAULT_GOAL := install

install: $(INSTALLED)

$(PY):
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 with the venv module was found. Install one, or: make install PYTHON=/path/to/python" >&2; exit 1; }
	@echo "1/4 $(VENV), made with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)

# torch comes first, so that the build chosen for it is settled; hatchling builds the packages of this repository in the last step. Pyfhel is
# compiled once and its wheel kept in .cache/wheels; where that is not possible, its plugin alone is left out.
$(INSTALLED): $(INPUTS) | $(PY)
	@echo "2/4 torch: the CPU build is about 200 MB, others more"
	@$(PIP) torch==2.13.0 numpy hatchling editables
	@echo "3/4 Pyfhel, which is published as source only"
	@if $(PY) $(BUILD_PYFHEL) .cache/wheels; then cp requirements/dev.txt $(VENV)/dev.txt; else \
		grep -v he_pyfhel requirements/dev.txt > $(VENV)/dev.txt; \
		echo "pppml-he-pyfhel is left out; everything else works without it. To try again: rm $(INSTALLED) && make install" >&2; fi
	@echo "4/4 the core, its plugins and the tools in requirements/dev.txt"
	@$(PIP) --no-build-isolation -r $(VENV)/dev.txt
	@touch $@

demo: $(INSTALLED)
	@$(QUIET) $(PY) examples/demo/run.py $(ARGS)

evidence: $(INSTALLED)
	@$(QUIET) $(VENV)/bin/pppml evidence examples/evidence/matrix.yaml -o evidence/default $(ARGS)

# Files of tests are shared out over as many processes as there are cores, at most four: each holds torch and data of its own.
test: $(INSTALLED)
	@$(QUIET) $(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

# Two at a time: a drill starts a federation of processes, and waits much of the time for one that was killed or is cut off.
drills: $(INSTALLED)
	@$(QUIET) $(PY) -m pytest tests/integration --drills -q -n 2 --dist worksteal $(ARGS)

bench: $(INSTALLED) $(PEERS)
	@$(QUIET) $(PY) -m pytest benchmarks --benchmark-only $(ARGS)

# Without peers the benchmarks run all the same, and say which comparisons they left out.
$(PEERS): requirements/peers.txt | $(INSTALLED)
	@rm -rf $(@D) && mkdir -p $(@D)
	@echo "peers to compare with: $(@D)"
	@if $(PIP_BARE) --no-deps --target $(@D) -r $<; then touch $@; else echo "they could not be installed; comparisons with them are skipped" >&2; fi

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

alone: $(INSTALLED)
	@test -n "$(P)" || { echo "Which plugin? make alone P=<plugin>, one of: $(notdir $(PLUGINS))" >&2; exit 2; }
	@$(QUIET) $(PY) scripts/alone.py $(P) $(ARGS)

alone-all: $(INSTALLED)
	@$(QUIET) $(PY) scripts/alone.py --all $(ARGS)

# Write down the set of versions that is installed now. Run the tests, then commit the file.
constraints: $(INSTALLED)
	$(PY) scripts/constraints.py > requirements/constraints.new && mv requirements/constraints.new requirements/constraints.txt

clean:
	rm -rf .cache dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks .import_linter_cache
