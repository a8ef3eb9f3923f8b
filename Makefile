PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/installed
TRITON := $(VENV)/triton
GPU := $(VENV)/gpu

.PHONY: demo test fuzz serve browser triton gpu
demo: $(INSTALLED)
	$(VENV)/bin/fvit-export demo demo-bundle
	$(VENV)/bin/fvit-certify demo-bundle fvit/demo/samples --sigma 0.25 --n 1000 --out demo-out
	$(VENV)/bin/fvit-report demo-out

serve: $(INSTALLED)
	$(VENV)/bin/fvit-serve demo

test: $(INSTALLED) browser triton
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest --numprocesses auto --dist worksteal

# What `make test` tries a little of: hostile inputs and faults, a hundred times as many (some 40 minutes of two cores).
fuzz: $(INSTALLED)
	FVIT_FUZZ=1 OMP_NUM_THREADS=1 $(VENV)/bin/pytest tests/fuzz tests/cluster/test_faults.py --numprocesses auto --dist worksteal

# The page is tested in it, where it may be installed.
browser:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium fonts-dejavu-core; } || \
		echo "no chromium: the page's tests are left out (apt-get install chromium)"

# A tritonserver, in an environment of its own.
triton: $(INSTALLED)
	@test $(TRITON)/installed -nt pyproject.toml || { $(PYTHON) -m venv $(TRITON) && \
		$(TRITON)/bin/pip install --quiet --disable-pip-version-check --editable '.[triton]' && \
		touch $(TRITON)/installed; } || \
		echo "no tritonserver: its tests are left out (it needs Linux on x86-64 and Python 3.10 to 3.12)"

# On a machine with an NVIDIA GPU and CUDA: its tests, and all that is measured there, into benchmarks/results/. It
# has an environment of its own, because onnxruntime-gpu takes the place of onnxruntime.
gpu: $(GPU)/installed
	$(GPU)/bin/python -m benchmarks.gpu

$(GPU)/installed: pyproject.toml
	$(PYTHON) -m venv $(GPU)
	$(GPU)/bin/pip install --quiet --disable-pip-version-check --editable '.[export,tensorrt,plots,dev]'
	$(GPU)/bin/pip uninstall --quiet -y onnxruntime
	$(GPU)/bin/pip install --quiet --disable-pip-version-check --no-deps onnxruntime-gpu
	touch $@

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --editable '.[export,openvino,plots,parquet,ray,evaluate,serve,dev]'
	touch $@
