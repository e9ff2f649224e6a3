# Two commands do all the set-up on a machine with Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
GPU := .venv-gpu/bin
# Workers of one thread each; a third one fills the time in which the others wait for a child.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
INSTALL := -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-full test-web check gpu-report clean

demo: .venv/.demo  ## sample 64 images from the bundled emoji model
	$(BIN)/lddgan sample --dataset emoji --num 64 --out demo.png

test: .venv/.test check  ## style, types and everything that takes seconds
	$(PYTEST) -n 3 --dist loadfile -m "not full and not web"  # the tests of a file share fixtures

test-full: .venv/.test  ## the rest: big exports, environments of their own
	$(PYTEST) -n 2 --dist load --maxschedchunk 1 -m full

test-web: .venv/.web  ## the pages of `lddgan export --web` and `lddgan serve`; needs Node, npm and Chromium
	$(PYTEST) -m web tests/export/web tests/engine/serving

check: .venv/.test  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

gpu-report: .venv-gpu/.done  ## measure everything on this GPU into one folder; QUICK=1: 10 minutes
	$(GPU)/python -m bench.gpu_report $(if $(QUICK),--seconds 600)

.venv/.demo: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python $(INSTALL) -e ".[cpu]"
	touch $@

.venv/.test: .venv/.demo
	$(BIN)/python $(INSTALL) -e ".[cpu,train,eval,serve,dev]"
	touch $@

# The page's runtime is of one version, which export/web/folder.py names.
.venv/.web: .venv/.test export/web/folder.py
	$(BIN)/python $(INSTALL) -e ".[cpu,train,eval,serve,dev,web]"
	npm install --prefix .venv/web --ignore-scripts --no-save --no-fund --no-audit \
	  onnxruntime-web@$$($(BIN)/python -c "from export.web.folder import VERSION; print(VERSION)")
	touch $@

# An environment of its own: ONNX Runtime for CPUs and for CUDA exclude each other.
.venv-gpu/.done: pyproject.toml constraints.txt
	@nvidia-smi --list-gpus || { echo "error: an NVIDIA GPU and its driver are needed here"; exit 1; }
	test -x $(GPU)/python || $(PYTHON) -m venv .venv-gpu
	$(GPU)/python $(INSTALL) -e ".[gpu,train]"
	touch $@

clean:
	rm -rf .venv .venv-gpu dist
