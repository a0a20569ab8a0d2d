# `make help` lists the targets. Everything runs in .venv, which is made on first use from pinned requirements; later runs start in seconds.
PYTHON ?= python3
BIN := .venv/bin
NUSCENES ?=
ARGS ?=
COVERAGE ?=
TESTED_BY = $(BIN)/$(if $(COVERAGE),coverage run,python)

.PHONY: help demo eval-demo test test-slow fuzz soak reliability check bench gpu-check docs clean distclean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## *\(.*\)/\1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16

demo: .venv/.installed  ## a short drive through the real node, with a picture at the end
	$(BIN)/bev_perception demo $(if $(NUSCENES),--nuscenes $(NUSCENES)) $(ARGS)

eval-demo: .venv/.installed  ## fails if the shipped weights score less than is recorded
	$(BIN)/bev_perception eval-demo $(ARGS)

test: .venv/.installed .venv-client/.installed  ## all tests but the slow ones; COVERAGE=1: which lines they run, in twice the time
	$(if $(COVERAGE),$(BIN)/coverage erase)
	OMP_NUM_THREADS=1 $(TESTED_BY) -m pytest -m "not slow and not ros" -n 2 --dist worksteal $(ARGS)
	OMP_NUM_THREADS=1 $(TESTED_BY) -m pytest -m "ros and not slow" -n 2 --dist worksteal $(ARGS)
	$(if $(COVERAGE),$(BIN)/coverage combine -q)
	$(if $(COVERAGE),$(BIN)/coverage report --fail-under=95)

test-slow: .venv/.installed  ## the synthetic world, which is compiled first, the demo in it, several processes, large parity cases
	$(BIN)/python -m pytest -m slow $(ARGS)

fuzz: .venv/.installed  ## damaged input of every kind, 2,000 of each, in processes of their own; prints the counts
	$(BIN)/python test/fuzz/fuzz.py $(ARGS)

soak: .venv/.installed  ## memory, threads and open files of the node over 5,000 results, about an hour
	$(BIN)/bev_perception soak $(ARGS)

reliability: .venv/.installed  ## tries every kind of fault and writes what held into docs/reliability.md
	$(BIN)/python test/fuzz/reliability.py $(ARGS)

check: .venv/.installed  ## style, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/.installed  ## times on this machine; no pass or fail
	$(BIN)/bev_perception bench $(ARGS)

gpu-check: .venv/.installed  ## checks and times everything on a GPU, in nine minutes at most; output/gpu.json and .md
	$(BIN)/bev_perception bench --gpu-report output/gpu.json $(ARGS)

docs: .venv-docs/.installed  ## the documents as a site, output/site/index.html
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --quiet $(ARGS)
	@echo wrote output/site/index.html

clean:  ## deletes outputs and caches; the venvs stay
	rm -rf output build dist .coverage .coverage.* htmlcov
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name '.venv*' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## deletes everything that was made, the venvs too
	rm -rf .venv .venv-client .venv-docs *.egg-info

.venv/.installed: requirements/bare.txt setup.py setup.cfg
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/bare.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

.venv-client/.installed: requirements/client.txt
	$(PYTHON) -m venv .venv-client
	.venv-client/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/client.txt
	touch $@

.venv-docs/.installed: requirements/docs.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/docs.txt
	touch $@
