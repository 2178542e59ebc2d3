# Two commands on a fresh machine with Python 3.10 or later and make:
#   make demo   sets up, then distils the embedded digits, trains students and prints a table
#   make test   sets up, then checks that notebooks and package agree, runs every notebook and tests/
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# one thread each: notebooks run side by side, and results must not depend on the number of threads
ENV    := PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 MPLBACKEND=agg PYTHONWARNINGS=ignore TQDM_DISABLE=1

.PHONY: demo test setup export clean-check notebooks pytest readme readme-check package-check

setup: $(READY)

$(READY): settings.ini setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: $(READY)
	rm -rf demo
	$(BIN)/infoutil demo -o demo

test: $(READY) clean-check notebooks pytest readme-check package-check
	@echo "all checks passed"

# Exporting and cleaning must change nothing: what is committed is what the notebooks say.
clean-check: $(READY)
	$(ENV) $(BIN)/python tests/check_sync.py

notebooks: $(READY)
	cd nbs && $(ENV) nbdev-test --n-workers 2 --timing

pytest: $(READY)
	$(ENV) $(BIN)/python -m pytest -n 2 --dist loadfile

export: $(READY)
	$(ENV) nbdev-export && $(ENV) nbdev-clean

# README.md is rendered from nbs/index.ipynb
readme: $(READY)
	$(ENV) $(BIN)/python tests/check_readme.py --write

readme-check: $(READY)
	$(ENV) $(BIN)/python tests/check_readme.py

# The built package works without nbdev, Jupyter or the other development extras
package-check: $(READY)
	$(ENV) $(BIN)/python tests/check_package.py
