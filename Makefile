# `make demo` and `make test` are all a fresh machine needs: each builds .venv and installs into it.
#   PYTHON=python3.12 make test    another interpreter
#   VENV=/elsewhere make test      another place
PYTHON ?= python3
VENV ?= .venv
LOCK ?= requirements.lock
SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

bin := $(VENV)/bin
pip := $(bin)/python -m pip --disable-pip-version-check
# With bytecode, whatever the shell says: without it every process compiles torch anew.
unexport PYTHONDONTWRITEBYTECODE
install := $(pip) install --quiet -c constraints.txt
# One test process more than there are cores, since many tests wait for other processes; but only a few,
# since every one of them imports torch. Files stay together: their tests share servers and other fixtures.
share = -n $(shell $(PYTHON) -c "import os; print(min(4, (os.cpu_count() or 1) + 1))") \
  --dist loadfile --no-loadscope-reorder
demo_ready := $(VENV)/.demo-ready
test_ready := $(VENV)/.test-ready
dev_ready := $(VENV)/.dev-ready
docs_ready := $(VENV)/.docs-ready
kernels := setup.py $(wildcard aggregators/kernels/c/*.[ch])

.PHONY: help demo test test-all test-isa test-oldest dev lint format types contracts check proto proto-check build wheelhouse lock compose-demo docs docs-serve clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

demo: $(demo_ready) ## 15 workers, 3 Byzantine: four rules against two attacks over gRPC, 1 to 2 minutes on two cores
	$(bin)/varangian demo

test: $(test_ready) ## the tests: of large products of parameters a sample in which every value occurs
	$(bin)/pytest $(share)

test-all: $(dev_ready) ## the whole test suite: every combination, and property tests with all their examples
	$(bin)/pytest $(share) --all

test-isa: $(dev_ready) ## the numerical tests under each instruction set that this processor has
	PYTHON=$(bin)/python .ci/isa

test-oldest: $(VENV)/bin/python ## the test suite with the oldest dependencies that pyproject.toml allows
	$(PYTHON) -m venv --clear $(VENV)-oldest
	$(install) uv
	$(bin)/uv pip install --quiet --python $(VENV)-oldest --resolution lowest-direct -e ".[all]" --group test
	$(VENV)-oldest/bin/pytest $(share) --all

dev: $(dev_ready) ## .venv with every extra and the tools for development

lint: $(dev_ready) ## ruff
	$(bin)/ruff check
	$(bin)/ruff format --check

format: $(dev_ready) ## ruff, mending what it can
	$(bin)/ruff check --fix
	$(bin)/ruff format

types: $(dev_ready) ## mypy and pyright, both strict
	$(bin)/mypy
	$(bin)/pyright --pythonpath $(bin)/python

contracts: $(dev_ready) ## the import contracts
	$(bin)/lint-imports

check: lint types contracts proto-check docs test-all ## everything a change must pass

proto: $(dev_ready) ## regenerate protos/ps_pb2*
	$(bin)/python -m grpc_tools.protoc -I src --python_out=src --pyi_out=src --grpc_python_out=src \
	  varangian/protos/ps.proto

proto-check: proto ## the committed generated code is what the generator makes
	git diff --exit-code --stat -- protos

build: $(dev_ready) ## sdist and wheel in dist/
	rm -rf dist build
	$(bin)/python -m build --quiet

wheelhouse: $(VENV)/bin/python ## wheels for building the image without an index; LOCK as in .env.example
	$(pip) download --quiet --require-hashes --only-binary :all: --dest wheelhouse -r $(LOCK)

lock: $(VENV)/bin/python ## requirements*.lock: the hashes of everything that the image installs
	$(install) uv
	.ci/lock $(bin)/uv

docs: $(docs_ready) ## the documentation site, in site/; it needs no network, and works from its files
	$(bin)/python docs/printed.py
	NO_MKDOCS_2_WARNING=1 $(bin)/mkdocs build --quiet
	! grep -rlE '<(script|link|img)[^>]*(src|href)="(https?:)?//' --include='*.html' site

docs-serve: $(docs_ready) ## the site on this machine, built again whenever a page changes
	$(bin)/python docs/printed.py
	NO_MKDOCS_2_WARNING=1 $(bin)/mkdocs serve

compose-demo: ## the cluster in containers: flag holds, the mean does not
	.ci/compose

clean: ## everything that can be made again
	rm -rf $(VENV) $(VENV)-oldest build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
	rm -rf .import_linter_cache site docs/project
	find wheelhouse -name '*.whl' -delete

# One pip for all: `--group` needs 25.1 or newer.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	            "Name another one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(install) pip

$(demo_ready): pyproject.toml constraints.txt $(kernels) | $(VENV)/bin/python
	$(install) -e ".[report]"
	touch $@

$(test_ready): pyproject.toml constraints.txt $(kernels) | $(VENV)/bin/python
	$(install) -e ".[all]" --group test
	touch $@

$(dev_ready): pyproject.toml constraints.txt $(kernels) | $(VENV)/bin/python
	$(install) -e ".[all]" --group dev
	touch $@

$(docs_ready): pyproject.toml constraints.txt $(kernels) | $(VENV)/bin/python
	$(install) -e ".[all]" --group docs
	touch $@
