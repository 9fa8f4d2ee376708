# Catena. `make help` lists what there is.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --disable-pip-version-check --progress-bar on -c constraints.txt
BUF := node_modules/.bin/buf
EMBEDDER := .catena-cache/minilm-int8
SOURCES := libs services demo benchmarks tests
# The first container engine that answers; a client without its daemon does not.
ENGINE ?= $(shell for one in docker podman; do $$one version >/dev/null 2>&1 && echo $$one && break; done)
TAG ?= $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
TORCH_IMAGES := image-adapters image-trainer
ROOM_IMAGES := image-gateway image-router image-executor image-memory image-features image-learner $(TORCH_IMAGES)

.DEFAULT_GOAL := help
.PHONY: help demo up test lint fmt proto models clean bench-platform bench-pipelines bench-gateway bench-router bench-adapters bench-adapters-cuda images chart engine image-models $(ROOM_IMAGES)

help: ## Say what can be made
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.base: constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Catena needs Python 3.11 or newer; set PYTHON=...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) -e '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(PIP) -e '.[dev]'
	@touch $@

$(EMBEDDER)/config.json: | $(VENV)/.base
	@$(BIN)/python -m catena.embed.export --out $(EMBEDDER)

demo: $(VENV)/.base $(EMBEDDER)/config.json ## Set everything up and run the tour: strategies, the loop, memory, a trace
	@$(BIN)/python -m demo

up: $(VENV)/.base $(EMBEDDER)/config.json ## Run the platform and stay; Ctrl-C stops it
	@$(BIN)/catena --config demo/catena.yaml up

models: $(VENV)/.base $(EMBEDDER)/config.json ## Train the demo's two base models anew
	@$(BIN)/python -m demo.train_models

test: $(VENV)/.dev $(EMBEDDER)/config.json ## Run every test that needs no GPU, data or load
	@$(BIN)/python -m pytest tests/unit tests/style -n 2
	@$(BIN)/python -m pytest tests/contract -n 2
	@$(BIN)/python -m pytest tests/system tests/chart

bench-platform: $(VENV)/.dev $(EMBEDDER)/config.json ## Measure what the platform itself costs
	@$(BIN)/python -m benchmarks.platform

bench-pipelines: $(VENV)/.dev $(EMBEDDER)/config.json ## Measure what pipelines, templates, batches and caches cost by themselves
	@$(BIN)/python -m benchmarks.pipelines

bench-gateway: $(VENV)/.dev $(EMBEDDER)/config.json ## Measure what the gateway adds, beside the LiteLLM proxy; PARTS=a,b, OUT=figures.json
	@$(BIN)/python -m benchmarks.gateway $(if $(PARTS),--parts $(PARTS)) $(if $(OUT),--out $(OUT))

bench-router: $(VENV)/.dev $(EMBEDDER)/config.json ## Score the router on outcomes of real models below CATENA_DATA; TABLE=f.csv, PARTS=1,2, OUT=tables.json
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.router $(if $(TABLE),--table $(TABLE)) $(if $(PARTS),--parts $(PARTS)) $(if $(OUT),--out $(OUT)) $(if $(SEEDS),--seeds $(SEEDS))

bench-adapters: $(VENV)/.dev $(EMBEDDER)/config.json ## Measure many adapters on one base; SIZE=tiny, DTYPE=bfloat16, PARTS=a,d, OUT=figures.json
	@$(BIN)/python -m benchmarks.adapters --size $(or $(SIZE),full) --dtype $(or $(DTYPE),float32) $(if $(PARTS),--parts $(PARTS)) $(if $(OUT),--out $(OUT))

bench-adapters-cuda: $(VENV)/.base ## Measure the same on a GPU, a random 7B in bf16 with 32 adapters; some 30 GB of its memory
	@$(BIN)/python -m benchmarks.adapters.cuda

images: $(ROOM_IMAGES) image-models ## Build every image with docker or podman; TAG=... names them, image-ROOM builds one

$(ROOM_IMAGES): image-%: engine
	$(ENGINE) build -f docker/$(if $(filter $@,$(TORCH_IMAGES)),torch,service).Dockerfile --build-arg SERVICE=$* -t catena-$*:$(TAG) .

image-models: engine $(EMBEDDER)/config.json
	$(ENGINE) build -f docker/models.Dockerfile -t catena-models:$(TAG) .

engine:
	@test -n "$(ENGINE)" || { echo "no container engine answers; install and start docker or podman, or name one: make images ENGINE=..."; exit 1; }

chart: $(VENV)/.dev $(EMBEDDER)/config.json ## Lint and render the Helm chart, validate it, and run its containers as processes
	@$(BIN)/python -m pytest tests/chart

lint: $(VENV)/.dev $(VENV)/.proto $(BUF) ## Check form, types, import laws, sizes, protos and stubs
	$(BIN)/ruff check $(wildcard $(SOURCES))
	$(BIN)/ruff format --check $(wildcard $(SOURCES))
	$(BIN)/mypy libs services
	$(BIN)/lint-imports
	$(BIN)/python -m pytest tests/style
	$(BUF) lint protos
	@rm -rf build/stubs && protos/generate.sh $(VENV)-proto/bin/python build/stubs
	@diff -r -x __pycache__ build/stubs/catena/api libs/catena/api || { echo "stubs are stale; run 'make proto'"; exit 1; }

fmt: $(VENV)/.dev ## Put the code into form
	$(BIN)/ruff check --fix $(wildcard $(SOURCES))
	$(BIN)/ruff format $(wildcard $(SOURCES))

proto: $(VENV)/.proto ## Generate the stubs from the protos
	@rm -rf libs/catena/api && protos/generate.sh $(VENV)-proto/bin/python libs

$(VENV)/.proto: protos/requirements.txt | $(VENV)/.base
	@test -x $(VENV)-proto/bin/python || $(PYTHON) -m venv $(VENV)-proto
	$(VENV)-proto/bin/pip install -q --disable-pip-version-check -r protos/requirements.txt
	@touch $@

$(BUF):
	npm install --no-save --no-audit --no-fund --silent @bufbuild/buf@1.75.0

clean: ## Remove what was installed, built or kept by a run
	rm -rf $(VENV) $(VENV)-proto node_modules build .catena .catena-cache
