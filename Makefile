# Settings are given in capitals, as in `make report DATA=kaggle SPLIT=official`; `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
.DEFAULT_GOAL := help
.PHONY: help report docs test test-slow test-all faults lab notebook train evaluate predict render benchmark clean

# NAME=value on make's command line reaches the settings' own parser, which refuses a misspelt one by name.
export XRAY_MAKE := $(MAKEOVERRIDES)
on = $(filter-out 0 no false,$(shell echo '$(1)' | tr A-Z a-z))
# What is said on the command line only: nobody shares images since a variable of that name is set.
said = $(if $(findstring command,$(origin $(1))),$(call on,$($(1))))
PAGES = $(if $(call said,SHARE),--share) $(if $(call said,PDF),--pdf)

help:  ## this text
	@echo "Usage: make TARGET [SETTING=VALUE ...]"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-10s %s\n", $$1, $$2}'
	@echo "Settings, with their defaults:"
	@sed -n 's/^    \([a-z_]*\): .* = _setting(\([^,]*\), "\([^"]*\)".*/\1|\2|\3/p' xray_helpers/settings.py | \
	  awk -F'|' '{printf "  %-14s %-12s %s\n", toupper($$1), $$2, $$3}'

report: $(VENV)/installed  ## run the notebooks in order into reports/ (DATA=sample, kaggle, or a folder or zip; PDF=1, SHARE=yes)
	@$(BIN)/python tools/run_notebooks.py report $(PAGES)

docs: $(VENV)/installed  ## make the same pages from the committed notebooks, without running them
	@$(BIN)/python tools/run_notebooks.py docs $(PAGES)

test: $(VENV)/installed-dev  ## lint, type-check, and run the tests that take minutes
	@start=$$(date +%s); set -ex; \
	$(BIN)/ruff check .; $(BIN)/ruff format --check .; $(BIN)/mypy; $(PYTEST) -m "not slow"; \
	{ set +x; } 2>/dev/null; echo "All checks passed in $$(( $$(date +%s) - start )) s."

test-slow: $(VENV)/installed-dev  ## the slow tests: kills, processes, notebooks on other kinds of data
	@$(PYTEST) -m slow

test-all: test test-slow  ## both

faults: $(VENV)/installed-dev  ## break things on purpose, at length, and print what happened
	@FAULTS=long $(PYTEST) -m fault

lab: $(VENV)/installed  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab notebooks

notebook: $(VENV)/installed  ## start a notebook of your own in my_notebooks/, which git ignores: NAME=mine
	@$(if $(and $(NAME),$(findstring command,$(origin NAME))),,echo "error: name the notebook, as in make notebook NAME=mine" >&2; exit 1)
	@$(BIN)/python tools/new_notebook.py "$(NAME)"

train: $(VENV)/installed  ## train a model, as notebook 05 does (PROCESSES=2 for several; FRESH=1 to start over)
	@$(if $(call on,$(PROCESSES)),$(BIN)/accelerate launch $(LAUNCH) -m,$(BIN)/python -m) xray_helpers.training $(if $(call on,$(FRESH)),--fresh)

evaluate: $(VENV)/installed  ## judge the newest run (or MODEL=folder) on validation, and open the test split
	@$(BIN)/python -m xray_helpers.evaluation $(if $(MODEL),"$(MODEL)")

predict: $(VENV)/installed  ## predict new images: IMAGES=folder-or-file (MODEL=models/latest, OUTPUT=reports/predictions.csv)
	@$(if $(IMAGES),,echo "error: name the images, as in make predict IMAGES=folder" >&2; exit 1)
	@$(BIN)/python -m xray_helpers.predict "$(IMAGES)" $(if $(MODEL),--model "$(MODEL)") $(if $(OUTPUT),--output "$(OUTPUT)")

render: $(VENV)/installed  ## refresh the outputs committed in notebooks/, on the synthetic sample
	@$(BIN)/python tools/run_notebooks.py render

benchmark: $(VENV)/installed-dev  ## measure this machine (ORIGINALS=zip of original-size images; DATA=… for how soon it learns)
	@$(BIN)/python benchmarks/spine.py $(if $(ORIGINALS),"$(ORIGINALS)")
	@$(BIN)/python benchmarks/loading.py $(if $(ORIGINALS),"$(ORIGINALS)")
	@$(BIN)/python benchmarks/training.py $(if $(ORIGINALS),"$(ORIGINALS)")
	@$(BIN)/python benchmarks/judging.py $(if $(ORIGINALS),"$(ORIGINALS)")
	@$(BIN)/python benchmarks/learning.py

clean:  ## remove the environment, the reports and everything made from data; keeps data/raw and models
	rm -rf $(VENV) data/processed reports/*.html reports/*.js reports/*.inv reports/report.* reports/_* *.egg-info .mypy_cache .ruff_cache

# --multi_gpu is Accelerate's word for several processes on one machine; without a GPU they share its CPU.
LAUNCH = --num_processes $(PROCESSES) --num_machines 1 --mixed_precision no --dynamo_backend no \
  $(if $(filter-out 1,$(PROCESSES)),--multi_gpu,--cpu)

# One thread per test process: more threads than cores wait for each other. A file's tests share what is made once, so
# they stay together; the files with the longest ones come first.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# PINNED=1, in a new clone: the versions of the committed rendering.
PINS = $(if $(call on,$(PINNED)),--constraint constraints.txt)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("error: Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; name another with PYTHON=…" if sys.version_info < (3, 11) else 0)'
	@echo "Making $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)

$(VENV)/installed: requirements.txt pyproject.toml | $(VENV)/bin/python
	@echo "Installing requirements.txt into $(VENV) (several GB with CUDA; a few minutes) ..."
	@start=$$(date +%s); $(BIN)/pip install --quiet --disable-pip-version-check -e . $(PINS) && \
	  echo "Installed in $$(( $$(date +%s) - start )) s." && touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@echo "Installing the tools for tests ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]' $(PINS) && touch $@
