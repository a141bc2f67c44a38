# Every command a person or a machine needs. `make help` lists them.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MLFLOW_VENV := .venv-mlflow
# MLflow's parts that its server does without, most of its size.
MLFLOW_UNUSED := contourpy|cycler|docker|fonttools|gunicorn|joblib|kiwisolver|matplotlib|narwhals|pillow|prettytable|pyarrow|pyparsing|scikit-learn|scipy|skops|threadpoolctl|wcwidth
MODEL ?=
REPLICAS ?=
PEERS ?=
IMAGE ?=
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
STEELYARD_SHARED ?= ../shared
export STEELYARD_SHARED

.DEFAULT_GOAL := help
.PHONY: help serve test test-sample check check-release pin rehearse images sbom faults faults-sample backing backing-sample bench lock demo clean

help: ## List the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

serve: $(VENV)/.runtime ## Serve on http://127.0.0.1:8000 (MODEL=weights.pt, REPLICAS=2)
	@exec $(BIN)/steelyard serve $(if $(MODEL),--model "$(MODEL)") $(if $(REPLICAS),--replicas $(REPLICAS))

test: $(VENV)/.dev ## Run the unit, integration and end-to-end tests
	$(BIN)/pytest -q -n auto tests/unit
	$(BIN)/pytest tests/integration tests/e2e

test-sample: $(VENV)/.dev ## Run those of them that CI runs: all but the long ones
	$(BIN)/pytest -q -n auto tests/unit
	$(BIN)/pytest --durations=10 tests/integration tests/e2e -m "not long"

check: $(VENV)/.dev ## Lint, types, architecture, manifests, Dockerfile, compose, alerts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python k8s/check.py

check-release: $(VENV)/.dev ## Check what a release deploys: every image has a digest
	$(BIN)/python k8s/check.py --release

pin: $(VENV)/.dev ## Write the digests of all images into the files that name them (needs Docker's buildx and a registry)
	$(BIN)/python k8s/pin.py

rehearse: $(VENV)/.dev ## Do what the image does without Docker: its user, its read-only tree, its command (needs root)
	$(BIN)/python k8s/rehearse.py

images: ## Build the images for CPUs and for GPUs (needs Docker, and a base that is pinned: make pin)
	docker build -f k8s/Dockerfile --target cpu -t steelyard:$(VERSION) .
	docker build -f k8s/Dockerfile --target cuda -t steelyard-cuda:$(VERSION) .

sbom: ## Print what is inside as CycloneDX: of IMAGE=steelyard:0.1.0, or of this environment
	@$(if $(IMAGE),docker run --rm --entrypoint cat $(IMAGE) /usr/share/steelyard/sbom.cdx.json,$(BIN)/cyclonedx-py environment --output-reproducible $(BIN)/python)

faults: $(VENV)/.dev ## Run the long suite of injected faults
	$(BIN)/pytest tests/faults

faults-sample: $(VENV)/.dev ## Run the faults that CI samples
	$(BIN)/pytest tests/faults -m sample

backing: $(VENV)/.dev $(MLFLOW_VENV)/.server ## Run the tests in front of PostgreSQL, an MLflow server and Redis
	$(BIN)/pytest tests/backing

backing-sample: $(VENV)/.dev $(MLFLOW_VENV)/.server ## Run those of them that CI samples
	$(BIN)/pytest tests/backing -m sample

bench: $(VENV)/.dev ## Compare with the raw engine and with other servers, in one short round; a step of load and a day of autoscaling (PEERS=fastapi,pytriton installs those)
	$(BIN)/python loadtest/bench.py --quick $(if $(PEERS),--peers "$(PEERS)")
	$(BIN)/python loadtest/autoscaling.py
	$(BIN)/python loadtest/day.py

demo: $(VENV)/.runtime ## Train the embedded demo detector again from nothing (about half an hour)
	$(BIN)/python -m models.demo.train --out demo-weights

lock: ## Pin every dependency again (needs pip-tools on the path)
	pip-compile -q --upgrade --extra cpu --strip-extras --no-emit-index-url --no-emit-find-links --no-header --annotation-style=line -o requirements.lock pyproject.toml
	sed -i -E 's/^torch==([0-9.]+)\+cpu/torch==\1/' requirements.lock
	$(PYTHON) -c 'import tomllib; g = tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]; print(*g["test"], *g["lint"], *g["load"], sep="\n")' \
	| pip-compile -q --upgrade -c requirements.lock --strip-extras --no-emit-index-url --no-emit-find-links --no-header --annotation-style=line -o requirements-dev.lock -
	sed -i -E 's/^torch==([0-9.]+)\+cpu/torch==\1/' requirements-dev.lock
	pip-compile -q --upgrade -c requirements.lock --strip-extras --no-emit-index-url --no-emit-find-links --no-header --annotation-style=line -o - tests/backing/mlflow-server.in \
	| grep -vE '^($(MLFLOW_UNUSED))==' > tests/backing/mlflow-server.lock

clean: ## Remove the virtual environment and caches; keeps .steelyard
	rm -rf $(VENV) $(MLFLOW_VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "Steelyard needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Run: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "Cannot create $(VENV): install Python's venv module (Debian: python3-venv)" >&2; exit 1; }

$(VENV)/.runtime: requirements.lock pyproject.toml | $(VENV)/bin/python
	@echo "Installing Steelyard into $(VENV) (once, a few minutes)"
	@$(BIN)/pip install --quiet --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/pip install --quiet --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.runtime
	@$(BIN)/pip install --quiet --quiet --disable-pip-version-check -r requirements-dev.lock
	@touch $@

# An environment of its own: the service needs MLflow's client only. What the lock leaves out stays out.
$(MLFLOW_VENV)/.server: tests/backing/mlflow-server.lock | $(VENV)/bin/python
	@echo "Installing an MLflow server into $(MLFLOW_VENV) (once, a minute)"
	@$(PYTHON) -m venv $(MLFLOW_VENV)
	@$(MLFLOW_VENV)/bin/pip install --quiet --quiet --disable-pip-version-check --no-deps --no-compile -r $<
	@touch $@
