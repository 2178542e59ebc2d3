# Two commands on a fresh machine with Python 3.10 or later and make:
#   make demo   sets up, then distils the embedded digits, trains students and prints a table
#   make test   sets up, then checks that notebooks and package agree, runs every notebook and tests/
# and for whoever changes what must not break: make test-long, the long forms of the tests, about two hours of two cores
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# uv installs in a third of pip's time; where it does not reach the index that pip is configured for, pip does it
PACKAGES := -c constraints.txt -e '.[dev]'
# one thread each: notebooks run side by side, and results must not depend on the number of threads; bytecode is kept, since uv compiles none
ENV    := PYTHONDONTWRITEBYTECODE= PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 MPLBACKEND=agg PYTHONWARNINGS=ignore TQDM_DISABLE=1 INFOUTIL_DEMO="$(CURDIR)/$(VENV)/demo"

.PHONY: demo test test-long docs setup export clean-check notebooks pytest readme readme-check package-check bench bench-quick

setup: $(READY)

$(READY): settings.ini setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python $(PACKAGES) || $(BIN)/python -m pip install --quiet $(PACKAGES)
	touch $@

demo: $(READY)
	rm -rf demo
	$(BIN)/infoutil demo -o demo

test: $(READY)
	$(MAKE) -j2 clean-check package-check
	$(MAKE) notebooks pytest readme-check
	@echo "all checks passed"

# Exporting and cleaning must change nothing: what is committed is what the notebooks say.
clean-check: $(READY)
	$(ENV) $(BIN)/python tests/check_sync.py

notebooks: $(READY)
	cd nbs && $(ENV) nbdev-test --n-workers 2 --timing

pytest: $(READY)
	$(ENV) $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" --durations=25

# twenty kills of each kind of run, ten thousand bad inputs, every byte of a kept file, sixteen processes, 32,000 images
test-long: $(READY)
	$(ENV) $(BIN)/python -m pytest -n 2 -m slow -s

# The site, in _docs/: a page of each notebook, with sidebar and search; ends with an error for a page that fails or a link into nothing
docs: $(READY)
	$(ENV) $(BIN)/python tests/build_docs.py

export: $(READY)
	$(ENV) nbdev-export && $(ENV) nbdev-clean
	cp nbs/templates/report.ipynb infoutil/templates/
	$(ENV) $(BIN)/python tests/check_settings.py --write

# README.md is rendered from nbs/index.ipynb
readme: $(READY)
	$(ENV) $(BIN)/python tests/check_readme.py --write

readme-check: $(READY)
	$(ENV) $(BIN)/python tests/check_readme.py

# The built package works without nbdev, Jupyter or the other development extras
package-check: $(READY)
	$(ENV) $(BIN)/python tests/check_package.py

# Every benchmark in its full form, one after the other, a few minutes each; rows go to results/speed/. Folders are optional: what is not given runs on made images and random weights.
#   make bench CIFAR10=... IMAGENETTE=...   photographs
#              NETS=...                     networks that benchmarks/networks.py trained
#              TABLES=...                   tables of coalitions that it made, a folder a network, for the errors of estimators
#              RDED=...                     a checkout of RDED's released code
#              DEVICE=cuda
# budget.py trains students for hours, and priors.py is about how the estimator was made: they have commands of their own.
BENCH           := $(filter-out common networks budget priors,$(patsubst benchmarks/%.py,%,$(sort $(wildcard benchmarks/*.py))))
args_whole       = $(if $(CIFAR10),--cifar10 $(CIFAR10)) $(if $(IMAGENETTE),--imagenette $(IMAGENETTE)) $(if $(NETS),--nets $(NETS))
args_student     = $(if $(RDED),--rded $(RDED))
args_estimators  = $(wildcard $(TABLES)/*)
device           = $(if $(DEVICE),$(if $(filter-out estimators,$(1)),--device $(DEVICE)))
benchmark        = echo "== $(1)" && $(ENV) $(BIN)/python benchmarks/$(1).py $(args_$(1)) $(call device,$(1)) $(2)
skip_estimators  = $(if $(TABLES),,echo "== estimators skipped: no TABLES= came")

bench: $(READY)
	@$(foreach b,$(BENCH),$(or $(skip_$(b)),$(call benchmark,$(b),)) &&) echo "figures are in results/speed"

bench-quick: $(READY)
	@out=$$(mktemp -d) && $(foreach b,$(BENCH),$(or $(skip_$(b)),$(call benchmark,$(b),--quick --out $$out/$(b).json)) &&) rm -r "$$out"
