# Everything runs in ./.venv, made from requirements.lock. `make` alone lists what can be done.

.DEFAULT_GOAL := help
.PHONY: help setup lint format test book lab lock clean distclean

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
HTML := _build/html/index.html
LABS := $(patsubst book/labs/source/%,book/labs/release/%,$(wildcard book/labs/source/*/*.ipynb))
JOBS ?= 2
PORT ?= 8888

# One thread a worker: tests and notebooks already run side by side.
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1
# Notebooks find the tools and the kernel of .venv, not those of the user or the system.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export JUPYTER_PREFER_ENV_PATH := 1
export PYDEVD_DISABLE_FILE_VALIDATION := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null

help: ## show this list
	@echo "hierlab: an executable book on land-cover mapping, and the library beneath it"
	@echo
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | \
	    awk -F '|' '{ printf "%-18s %s\n", $$1, $$2 }'
	@echo
	@echo "  PYTHON=/path/to/python   the interpreter to start from (3.11 or newer)"
	@echo "  JOBS=$(JOBS)   test workers      PORT=$(PORT)   JupyterLab's port"

setup: $(STAMP) ## make .venv and install everything (once; some minutes, about 7 GB)

$(STAMP): requirements.lock pyproject.toml
	@set -e; \
	if ! $(BIN)/python $(NEW_ENOUGH); then \
	    found=; \
	    for candidate in $(or $(PYTHON),python3.13 python3.12 python3.11 python3 python); do \
	        if "$$candidate" $(NEW_ENOUGH); then found=$$candidate; break; fi; \
	    done; \
	    if [ -z "$$found" ]; then \
	        echo "hierlab needs Python 3.11 or newer and found none among: $(or $(PYTHON),python3.13 python3.12 python3.11 python3 python)." >&2; \
	        echo "Install one, or name it: make setup PYTHON=/path/to/python3.12" >&2; \
	        exit 1; \
	    fi; \
	    if ! "$$found" -m venv --clear $(VENV); then \
	        echo "$$found cannot make a virtual environment (on Debian and Ubuntu: apt install python3-venv)." >&2; \
	        exit 1; \
	    fi; \
	fi; \
	echo "Installing into $(VENV) with $$($(BIN)/python --version); once, some minutes, about 7 GB."; \
	$(BIN)/python -m pip install --quiet --requirement requirements.lock; \
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .; \
	touch $@

lint: $(STAMP) ## check the style of code and notebooks
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/python book/_ext/notebooks.py --check

format: $(STAMP) ## mend the style, strip the notebooks' outputs
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BIN)/python book/_ext/notebooks.py --strip

test: lint ## style, tests, and every notebook of the book at smoke profile
	@HIERLAB_PROFILE=smoke $(BIN)/python -m pytest tests book --numprocesses $(JOBS) --dist loadfile \
	    --nbval-lax --nbval-current-env --nbval-cell-timeout 600 --durations 15

book: $(STAMP) ## run and build the book: _build/html/index.html
	@$(BIN)/python book/_ext/vendor.py _build/vendor
	@HIERLAB_PROFILE=smoke $(BIN)/jupyter-book build . --all -W --keep-going
	@echo
	@echo "The book: $(CURDIR)/$(HTML)"

lab: $(STAMP) $(LABS) ## open JupyterLab with the labs open (Ctrl-C twice to stop)
	@$(BIN)/jupyter lab --port $(PORT) $(if $(filter 0,$(shell id -u)),--allow-root) \
	    --ServerApp.root_dir="$(CURDIR)" --LabApp.default_url="/lab/tree/$(firstword $(LABS))"

# The student version of a lab, made from its solution once and then left alone: it holds the reader's work.
book/labs/release/%.ipynb: | $(STAMP)
	@cd book/labs && "$(CURDIR)/$(BIN)/nbgrader" generate_assignment "$(*D)" \
	    --CourseDirectory.root="$(CURDIR)/book/labs" --no-db --log-level ERROR

lock: ## renew requirements.lock from pyproject.toml (in a fresh environment)
	@set -e; \
	rm -rf _build/lock; \
	$(or $(PYTHON),python3) -m venv _build/lock; \
	_build/lock/bin/python -m pip install --quiet --upgrade setuptools wheel; \
	: 'soupsieve 3 needs Python 3.11.5, and Debian 12 has 3.11.2'; \
	_build/lock/bin/python -m pip install --quiet --no-build-isolation --editable '.[book,scale,test]' 'soupsieve<3'; \
	_build/lock/bin/python -m pip check; \
	{ sed -n '/^#/p' requirements.lock; \
	  _build/lock/bin/python -m pip freeze --all --exclude pip --exclude-editable | grep -v '^#' | \
	  sed -E -e '/^(nvidia-|cuda-|triton=)/s/$$/ ; sys_platform == "linux"/' \
	         -e '/^(uvloop|pexpect|ptyprocess)=/s/$$/ ; sys_platform != "win32"/'; \
	} > requirements.lock.new; \
	mv requirements.lock.new requirements.lock; \
	rm -rf _build/lock

clean: ## remove what was built (keeps .venv)
	@rm -rf _build .pytest_cache .ruff_cache .hypothesis hierlab.egg-info
	@find . -path ./$(VENV) -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

distclean: clean ## remove .venv too
	@rm -rf $(VENV)
