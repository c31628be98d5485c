# The kit in a few commands; `make help` lists them.

PROFILE ?= laptop
EXTRAS ?= dev
python := .venv/bin/python
export PYTHON

.DEFAULT_GOAL := help
.PHONY: help env reproduce test types licences lab clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "PROFILE=ci|laptop          what to reproduce (default laptop)"
	@echo "PYTHON=/path/to/python     which Python 3.11 or 3.12 to use (default: the first found)"
	@echo "EXTRAS=dev,gpu             what to install (default dev; gpu adds unsloth and vllm)"
	@echo "PIP_EXTRA_INDEX_URL=URL    a second package index, e.g. one with CPU builds of torch"

env: ## create or refresh .venv
	@sh env/create.sh "$(EXTRAS)"

reproduce: env ## run all notebooks headlessly and write reports/
	@$(python) -m memalpha_kit run --profile "$(PROFILE)"

test: env ## what CI runs: ruff and pytest
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

types: env ## mypy on the package, by the rules in pyproject.toml
	$(python) -m mypy

licences: env ## licence of every installed package
	$(python) -m piplicenses --from=mixed --format=plain

lab: env ## open the notebooks in JupyterLab
	$(python) -m jupyterlab --ip=127.0.0.1 --notebook-dir=.

clean: ## remove the environment and caches; data/, runs/ and reports/ stay
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find memalpha_kit tests notebooks -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
