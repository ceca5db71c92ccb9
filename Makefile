# The FineTune operator. `make help` lists everything; every target sets up what it needs.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
DEV := $(PYTHON) tools/env.py dev
TRAINER := $(PYTHON) tools/env.py trainer
ORACLE := $(PYTHON) tools/env.py oracle
CLUSTER ?= auto
IMAGES ?= {}
TIER ?= all
N ?= 1000
ARGS ?=

.PHONY: help demo demo-down test check format e2e-kills chaos crash-loop chaos-training bench-control-plane bench-trainer bench-guards bench-router cluster-up cluster-down cluster-status images mutation crds keda transcript lock

help: ## List the targets
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  CLUSTER=auto|current|kind|node   for demo (auto: the built-in node on Linux as root, else kind)"
	@echo "  IMAGES='{\"operator\":\"…\",\"trainer\":\"…\"}'   for demo with CLUSTER=current: images that it can pull"
	@echo "  TIER=all|unit|trainer|numerics|integration|e2e   for test"
	@echo "  ARGS='--rows 48 --precision bf16'       for bench-trainer (ARGS=--help lists the rest)"
	@echo "  ARGS='--canaries 200 --no-effects'      for bench-guards (ARGS=--help lists the rest)"
	@echo "  N=1000 ARGS='--out FOLDER'              for bench-control-plane (ARGS=--help lists the rest)"

demo: ## From a bare machine to a tuned model behind a 10, 50, 100 % split; leaves it up
	@$(DEV) python -m demo up --cluster $(CLUSTER) --images '$(IMAGES)'

demo-down: ## Remove everything that the demo left
	@$(DEV) python -m demo down --cluster $(CLUSTER)

test: ## Unit, trainer, numerics, integration and end-to-end tests (TIER=unit runs a part)
	@$(DEV) python -m tests.run --tier $(TIER)

check: ## ruff, strict mypy of operator and trainer, import-linter, CRD and chart drift, helm lint
	@$(DEV) ruff check .
	@$(DEV) ruff format --check .
	@$(DEV) mypy
	@$(TRAINER) mypy --cache-dir .mypy_cache/trainer -p finetune_trainer
	@$(DEV) lint-imports
	@$(DEV) python -m finetune_operator.api.crd --check
	@$(DEV) python charts/helm.py lint charts/finetune-operator

format: ## Let ruff format and mend what it can
	@$(DEV) ruff check --fix .
	@$(DEV) ruff format .

e2e-kills: ## Delete every kind of pod at random moments of a whole run; prints what was lost as JSON
	@$(DEV) python -m tests.chaos.kills

bench-control-plane: ## What N FineTunes cost a control plane, beside N bare Jobs; last line JSON
	@$(DEV) python -m tests.bench.control_plane --objects $(N) $(ARGS)

bench-router: ## 10,000 users through a rollout on real routers, pushes and latency timed; last line JSON (ARGS=--help)
	@$(DEV) python -m tests.bench.router $(ARGS)

transcript: ## Ask the real server with OpenAI's own client; prints it and writes docs/openai.md
	@$(TRAINER) python -m tests.trainer.transcript

bench-trainer: ## The trainer's speed and memory beside TRL's defaults, on the GPU if there is one; last line JSON
	@$(ORACLE) python -m tests.bench.trainer $(ARGS)

bench-guards: ## How often a rollout's guards err and what they see in how many requests, beside fixed thresholds; last line JSON
	@$(DEV) python -m tests.bench.guards $(ARGS)

chaos: ## Disturb a full life in every way, kill the operator after each of its writes; about half an hour, ends with JSON (SAMPLE=N kills)
	@$(DEV) python -m tests.chaos.suite $(if $(SAMPLE),--sample $(SAMPLE))

crash-loop: ## Kill, cut the power, fill and break the disk at every change that the trainer makes to files; ends with JSON (ARGS=--help)
	@$(TRAINER) python -m tests.crash.loop $(ARGS)

chaos-training: ## Two ranks killed thirty times must train what an undisturbed run trains; ends with JSON (ARGS='--kills 3 --sharding DDP')
	@$(DEV) python -m tests.chaos.training $(ARGS)

cluster-up: ## Start the built-in single-node Kubernetes (also recovers one that was killed)
	@$(PYTHON) -m devcluster up

cluster-down: ## Stop it and leave nothing behind
	@$(PYTHON) -m devcluster down

cluster-status: ## Say what of it runs
	@$(PYTHON) -m devcluster status

images: ## Build the operator's, the trainer's and the router's image into the local registry
	@$(PYTHON) -m devcluster images

mutation: ## Change decide/ in one place at a time and ask the unit tests (FILES='gate.py rollout/hold.py' asks of some); prints JSON
	@$(DEV) python -m tests.mutation.run $(FILES)

keda: ## A FineTune whose replicas a real KEDA has in hand, through a rollout; builds KEDA first (docs/serving.md)
	@$(DEV) python -m pytest -vv tests/keda

crds: ## Generate the CRD and the reference page from the API models
	@$(DEV) python -m finetune_operator.api.crd

lock: ## Resolve all locks anew
	@$(PYTHON) tools/lock.py
