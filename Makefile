# make quickstart | test | test-all | lint | docs | dist, with PYTHON=python3.13 for another Python.
PYTHON ?= python3
VERSION := $(shell command -v $(PYTHON) > /dev/null && \
	$(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
SUPPORTED := $(patsubst constraints/%.txt,%,$(sort $(wildcard constraints/*.txt)))
ifeq ($(filter $(VERSION),$(SUPPORTED))$(filter clean,$(MAKECMDGOALS)),)
$(error $(PYTHON) is $(if $(VERSION),Python $(VERSION),not installed). The supported ones are \
$(SUPPORTED). Name one of them: make $(firstword $(MAKECMDGOALS)) PYTHON=python$(lastword $(SUPPORTED)))
endif
# The default interpreter has .venv; one that is named has its own, .venv-3.12.
VENV := $(if $(filter file,$(origin PYTHON)),.venv,.venv-$(VERSION))
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# The extra for the machine's accelerators, gpu where there are NVIDIA GPUs: with GPU=gpu-cuda12 for
# CUDA 12, with GPU= on CPUs.
GPU := $(if $(shell command -v nvidia-smi),gpu)

# Where images of containers set it, each process that a test starts would compile all modules anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: quickstart test test-all lint docs dist clean

$(INSTALLED): pyproject.toml constraints/$(VERSION).txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints/$(VERSION).txt --editable '.[test]'
	touch $@

$(VENV)/.installed-%: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints/$(VERSION).txt --editable '.[$*]'
	touch $@

# The result of each run is its standard output; what happens on the way goes to the screen.
quickstart: $(INSTALLED) $(GPU:%=$(VENV)/.installed-%)
	mkdir -p runs/quickstart
	for family in vit swin; do \
		$(BIN)/python train.py --config=configs/digits.py:$$family \
			--workdir=runs/quickstart/$$family > runs/quickstart/$$family.txt || exit 1; \
	done
	@cat runs/quickstart/vit.txt runs/quickstart/swin.txt

# Each worker begins with half of the tests, so that most files stay whole, and takes over from the
# other at the end.
test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses=2 --dist=worksteal --durations=15 \
		-m "not xla_behaviour and not long"

test-all: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses=2 --dist=worksteal --durations=15

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation as a site, in site/. After the installation nothing needs a network. --quiet would
# count no warnings.
docs: $(INSTALLED) $(VENV)/.installed-docs
	JAX_PLATFORMS=cpu NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# The wheel and the source distribution, as they are published.
dist: $(VENV)/.installed-release
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m twine check --strict dist/*

clean:
	rm -rf .venv .venv-3.* build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache
