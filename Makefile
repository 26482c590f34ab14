# `make demo` and `make test` are all the set-up there is. Each installs what it needs into .venv and touches nothing else.
#
#   make demo            the embedded model answers about pictures, then serves until Ctrl-C   (ONCE=1: ends after the answers)
#   make test            lint, types, every fast test
#   make test-engines    engines against their references (installs torch into .venv-reference)   (ALL=1: vllm, easydel and litellm too, 9 GB)
#   make test-clients    other people's clients: LiteLLM, LangChain, OpenAI's JavaScript SDK (npm)
#   make test-cluster    several machines of a real Ray, on this one; replicas, machines and ingresses are killed (20 minutes)
#   make reliability-jobs    batches killed again and again; what is synced; how long people wait beside a batch
#   make reliability     drain, clients that leave, overload, dying engines, a soak, hostile bodies   ONLY=4,6 SOAK_MINUTES=20
#   make fuzz-images     10,000 damaged pictures through the decoders, then a server   MUTATIONS=10000
#   make chaos           broken networks, outages, deadlines: promise, measured, met     REQUESTS=10000 CHAOS="--only 9"
#   make bench-images    speed and closeness of decoding, side by side with Pillow's own
#   make train-peek      trains the embedded model           MINUTES=90 RUN=runs/peek
#   make check-training      two minutes of train-peek, whose loss must fall   MINUTES=2
#   make audit           known vulnerabilities of what is pinned; an SBOM in dist/
#   make package         wheel and sdist, and the embedded model asked from the wheel in a clean environment
#   make train-whisper   trains the tiny Whisper of the tests (espeak-ng)   MINUTES=50
#   make eval-peek       measures the embedded model         PER_TASK=200 EVAL="--photographs DIR --compare FILE"
#   make bench-gateway   CPU and latency in front of a model, beside LiteLLM's proxy and a plain one
#   make bench-cluster   Ray's replicas beside one server: throughput, latency, scaling, failover   (BENCH="--replicas 1 2")
#   make bench-health    how long /health takes while 16 clients send photographs
#   make lock            pins every dependency, with hashes, for CI and Docker

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
REFERENCE := .venv-reference
LITELLM := .venv-litellm
VLLM := .venv-vllm
EASYDEL := .venv-easydel
CLIENTS := .venv-clients
CLUSTER := .venv-cluster
TRAIN := .venv-train
GATEWAY := .venv-gateway
WHEEL := .venv-wheel
AUDIT := .venv-audit
MINUTES ?= 90
RUN ?= runs/peek
PER_TASK ?= 200
MUTATIONS ?= 10000
REQUESTS ?= 10000
SOAK_MINUTES ?= 20
FUZZ_MINUTES ?= 10
PIP_INSTALL = -m pip install --quiet --disable-pip-version-check
LOCKED := requirements/dev.txt
PIP_COMPILE = $(BIN)/python -m piptools compile --quiet --generate-hashes --allow-unsafe --strip-extras --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-header

.PHONY: demo test test-engines test-clients test-cluster bench-cluster reliability reliability-jobs fuzz-images chaos bench-images train-peek check-training audit package train-whisper eval-peek bench-health bench-gateway lint lock clean

$(VENV)/.installed: pyproject.toml $(LOCKED)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Sightline needs Python 3.11 or newer; name one with PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP_INSTALL) --require-hashes -r $(LOCKED)
	$(BIN)/python $(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py $(if $(ONCE),--once) $(if $(PORT),--port $(PORT))

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest

$(REFERENCE)/.installed: pyproject.toml tests/engines/reference/requirements.txt
	$(PYTHON) -m venv $(REFERENCE)
	$(REFERENCE)/bin/python $(PIP_INSTALL) -r tests/engines/reference/requirements.txt
	$(REFERENCE)/bin/python $(PIP_INSTALL) --editable '.[dev]'
	@touch $@

test-engines: $(VENV)/.installed $(REFERENCE)/.installed
	$(REFERENCE)/bin/python -m pytest tests/engines tests/images -m engine_reference --ignore tests/engines/test_conformance.py --ignore tests/engines/llamacpp/test_llamacpp_conformance.py --timeout 1200
	$(REFERENCE)/bin/python -m pytest tests/training/test_peek_model.py
	SIGHTLINE_ENGINES_REQUIRED="openvino transformers llamacpp" $(REFERENCE)/bin/python -m pytest tests/engines/test_conformance.py tests/engines/llamacpp/test_llamacpp_conformance.py -m "" --timeout 1200
	$(if $(ALL),$(BIN)/sightline engine install vllm --cpu --into $(VLLM))
	$(if $(ALL),$(BIN)/sightline engine install easydel --cpu --into $(EASYDEL))
	$(if $(ALL),SIGHTLINE_ENGINES_REQUIRED="vllm easydel" SIGHTLINE_VLLM_PYTHON=$(CURDIR)/$(VLLM)/bin/python SIGHTLINE_EASYDEL_PYTHON=$(CURDIR)/$(EASYDEL)/bin/python $(BIN)/python -m pytest tests/engines/test_vllm_reference.py tests/engines/easydel/test_easydel_reference.py -m engine_reference --timeout 1200)
	$(if $(ALL),$(BIN)/sightline engine install litellm --into $(LITELLM))
	$(if $(ALL),$(LITELLM)/bin/python $(PIP_INSTALL) --editable '.[dev]')
	$(if $(ALL),SIGHTLINE_ENGINES_REQUIRED="litellm-openai litellm-anthropic" $(LITELLM)/bin/python -m pytest tests/engines/test_litellm_provider.py -m engine_reference)

$(CLIENTS)/.installed: tests/clients/requirements.txt pyproject.toml
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python $(PIP_INSTALL) -r tests/clients/requirements.txt
	$(CLIENTS)/bin/python $(PIP_INSTALL) --editable .
	@touch $@

test-clients: $(CLIENTS)/.installed
	$(CLIENTS)/bin/python -m pytest tests/clients -m clients -rs

reliability-jobs: $(VENV)/.installed
	$(BIN)/python -m tests.jobs.report --into docs/reliability-jobs.md
	$(BIN)/python -m tests.batch.kill --rows 1000 --kills 20
	$(BIN)/python -m tests.jobs.beside
	$(BIN)/python -m tests.jobs.beside --store redis

reliability: $(VENV)/.installed
	$(BIN)/python -m tests.reliability --only "$(ONLY)" --soak-minutes $(SOAK_MINUTES) --fuzz-minutes $(FUZZ_MINUTES) --json runs/reliability.json --into docs/reliability.md

fuzz-images: $(VENV)/.installed
	$(BIN)/python -m tests.images.damage --mutations $(MUTATIONS)
	$(BIN)/python -m tests.images.damage --mutations $(MUTATIONS) --server

$(CLUSTER)/.installed: tests/cluster/requirements.txt pyproject.toml $(LOCKED)
	$(PYTHON) -m venv $(CLUSTER)
	$(CLUSTER)/bin/python $(PIP_INSTALL) -r $(LOCKED)
	$(CLUSTER)/bin/python $(PIP_INSTALL) -r tests/cluster/requirements.txt
	$(CLUSTER)/bin/python $(PIP_INSTALL) --no-deps --editable .
	@touch $@

test-cluster: $(CLUSTER)/.installed
	$(CLUSTER)/bin/python -m pytest -p no:warnings tests/cluster -m cluster -rs

bench-cluster: $(CLUSTER)/.installed
	$(CLUSTER)/bin/python $(PIP_INSTALL) matplotlib
	$(CLUSTER)/bin/python -m sightline.bench.cluster --out docs/bench-cluster $(BENCH)

chaos: $(VENV)/.installed
	$(BIN)/python -m tests.chaos_report --requests $(REQUESTS) --json runs/chaos.json $(CHAOS)

bench-images: $(VENV)/.installed
	$(BIN)/python $(PIP_INSTALL) matplotlib
	$(BIN)/python -m sightline.bench.images --out docs/bench-images

$(TRAIN)/.installed: training/peek/requirements.txt
	$(PYTHON) -m venv $(TRAIN)
	$(TRAIN)/bin/python $(PIP_INSTALL) -r training/peek/requirements.txt
	@touch $@

train-peek: $(TRAIN)/.installed
	$(TRAIN)/bin/python -m training.peek.train --minutes $(MINUTES) --out $(RUN) --resume
	$(TRAIN)/bin/python -m training.peek.checkpoint $(RUN) $(RUN)/model
	$(TRAIN)/bin/python -m training.peek.plot $(RUN) $(RUN)/loss.png
	@echo "The checkpoint is in $(RUN)/model; 'python -m sightline.engines.openvino.export $(RUN)/model' makes it servable."

check-training: $(REFERENCE)/.installed
	rm -rf runs/check-training
	$(REFERENCE)/bin/python -m training.peek.train --minutes $(if $(filter file,$(origin MINUTES)),2,$(MINUTES)) --out runs/check-training
	$(REFERENCE)/bin/python -m training.peek.falls runs/check-training

audit: $(VENV)/.installed
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python $(PIP_INSTALL) 'pip-audit>=2.9' 'cyclonedx-bom>=7'
	mkdir -p dist
	$(AUDIT)/bin/python -m cyclonedx_py requirements --output-file dist/sightline.cdx.json requirements/core.txt
	$(BIN)/python -m tests.audit $(AUDIT)/bin/python requirements/core.txt deploy/docker/requirements.txt

package: $(VENV)/.installed
	rm -rf dist $(WHEEL)
	$(BIN)/python $(PIP_INSTALL) build
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(PYTHON) -m venv $(WHEEL)
	$(WHEEL)/bin/python $(PIP_INSTALL) --require-hashes -r requirements/core.txt
	$(WHEEL)/bin/python $(PIP_INSTALL) --no-deps dist/*.whl
	cd / && $(CURDIR)/$(WHEEL)/bin/python $(CURDIR)/tests/package_check.py $(CURDIR)/examples/pictures

train-whisper: $(TRAIN)/.installed
	$(TRAIN)/bin/python $(PIP_INSTALL) -r training/whisper/requirements.txt --editable .
	OMP_NUM_THREADS=1 $(TRAIN)/bin/python -m training.whisper.train --minutes $(MINUTES) --out runs/whisper --resume
	$(TRAIN)/bin/python -m training.whisper.checkpoint runs/whisper runs/whisper/model
	$(TRAIN)/bin/python -m training.whisper.plot runs/whisper runs/whisper/loss.png

eval-peek: $(VENV)/.installed
	$(BIN)/python -m training.peek.evaluation --per-task $(PER_TASK) --out runs/eval-peek $(EVAL)

bench-health: $(VENV)/.installed
	$(BIN)/python -m sightline.bench.health

$(GATEWAY)/.installed: src/sightline/bench/gateway/peers.txt
	$(PYTHON) -m venv $(GATEWAY)
	$(GATEWAY)/bin/python $(PIP_INSTALL) -r src/sightline/bench/gateway/peers.txt
	@touch $@

bench-gateway: $(VENV)/.installed $(GATEWAY)/.installed
	$(BIN)/python $(PIP_INSTALL) matplotlib
	$(BIN)/python -m sightline.bench.gateway --peers $(GATEWAY)/bin/python --out docs/bench-gateway

lock: $(VENV)/.installed
	$(BIN)/python $(PIP_INSTALL) pip-tools
	$(PIP_COMPILE) --output-file requirements/core.txt pyproject.toml
	$(PIP_COMPILE) --extra dev --all-build-deps --output-file requirements/dev.txt pyproject.toml
	$(PIP_COMPILE) --extra redis --extra otel -c requirements/core.txt -c requirements/dev.txt --output-file deploy/docker/requirements.txt pyproject.toml

clean:
	rm -rf $(VENV) $(CLIENTS) $(CLUSTER) $(REFERENCE) $(LITELLM) $(VLLM) $(EASYDEL) $(TRAIN) $(WHEEL) $(AUDIT) build dist
