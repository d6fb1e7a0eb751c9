# make demo and make test set up by themselves; everything lands in .venv, runs/ and the cache folder.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0+cpu
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
READY := $(VENV)/.ready

CONFIG ?= configs/demo.yaml
PORT ?= 8000
ADDRESS ?= http://127.0.0.1:8265
JOB ?= solve-$(shell date +%Y%m%d-%H%M%S)

.PHONY: setup demo ablate-demo serve job test check lock clean
.DELETE_ON_ERROR:

setup: $(READY)

# torch first: from the default index or pip's find-links where they have the CPU build, else from PyTorch's own.
# The rest is a full lock, so pip resolves nothing (--no-deps).
$(READY): requirements/cpu.txt requirements/dev.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 13) else "Python 3.11 or 3.12 is needed, this is %d.%d: make PYTHON=python3.12 ..." % v)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-deps $(TORCH) 2>/dev/null \
	  || $(BIN)/python -m pip install --quiet --no-deps --index-url $(TORCH_INDEX) $(TORCH)
	$(BIN)/python -m pip install --quiet --no-deps -r requirements/cpu.txt -r requirements/dev.txt
	touch $(READY)

demo: setup
	$(BIN)/python pipelines/solve.py --config configs/demo.yaml

ablate-demo: setup
	$(BIN)/python pipelines/ablate.py --config configs/ablate_demo.yaml
	@echo "open runs/ablate-demo/leaderboard.html in a browser"

serve: setup
	$(BIN)/python -m serve --config $(CONFIG) --port $(PORT)

# OUTPUT: where all nodes can write, an absolute path or a bucket; a job's run folder is OUTPUT/JOB, and all of them share
# OUTPUT/store, so that a job that was stopped goes on in the next one. ARGS: more options of solve.py.
job: setup
	@test -n "$(OUTPUT)" || { echo "say where results go: make job OUTPUT=/data (or s3://bucket/folder)"; exit 2; }
	$(BIN)/ray job submit --address $(ADDRESS) --submission-id $(JOB) --working-dir . -- \
	  python pipelines/solve.py --config $(CONFIG) --output $(OUTPUT)/$(JOB) --set store.path=$(OUTPUT)/store $(ARGS)

# Tests of real engines come last and have cores of their own: see tests/conftest.py.
PYTEST := $(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder
test: setup
	$(PYTEST) -m "not real"
	$(PYTEST) -m real

check: setup
	$(BIN)/ruff check .
	$(BIN)/mypy

# New pins: edit pyproject.toml, then make lock (needs uv).
LOCK := uv pip compile -q --universal --no-header --annotation-style line --overrides requirements/overrides.txt
CPU_LOCK := $(LOCK) --overrides requirements/overrides-cpu.txt
lock:
	$(CPU_LOCK) pyproject.toml --group demo --group cpu --group quantization --group japanese -o requirements/cpu.txt
	$(CPU_LOCK) --group dev -c requirements/cpu.txt -o requirements/dev.txt
	$(LOCK) --overrides requirements/overrides-gpu.txt pyproject.toml --group demo --group gpu --group quantization --group japanese -o requirements/gpu.txt

clean:
	rm -rf $(VENV) runs
