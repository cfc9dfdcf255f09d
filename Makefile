# Everything a person does here: make demo, make test, make stop. PYTHON names an interpreter, 3.11 or later.
PYTHON ?= python3
BIN := .venv/bin
UV := $(BIN)/python -I tasks/platforms/local/uv.py
ENVIRONMENT := $(BIN)/python -m tasks.platforms.local.environments
# Keep in step with environments/orchestrator/requirements.txt.
UV_VERSION := $(shell sed -n 's/^uv==\([0-9.]*\).*/\1/p' environments/orchestrator/requirements.txt)
NO_CUDA := $(foreach package,torch triton nvidia-cublas nvidia-cuda-cccl nvidia-cuda-cupti nvidia-cuda-nvrtc nvidia-cuda-runtime \
	nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-curand nvidia-cusolver nvidia-cusparse nvidia-cusparselt-cu13 \
	nvidia-nccl-cu13 nvidia-nvjitlink nvidia-nvshmem-cu13 nvidia-nvtx cuda-bindings cuda-pathfinder cuda-toolkit,\
	--no-emit-package $(package))

.PHONY: help setup demo stop azure-demo azure-stop azure-smoke test test-all lint lock clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile

setup: .venv/.complete ## Make .venv with the locked orchestrator environment

.venv/.complete: environments/orchestrator/requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("phiflow needs Python 3.11 or later: make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@$(UV) pip sync --quiet --compile-bytecode --python $(BIN)/python environments/orchestrator/requirements.txt
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

demo: setup ## The whole journey: data, fine-tune, gate, deploy, traffic, chat app
	@$(BIN)/phiflow run deployments/local.yaml
	@$(BIN)/python -m flows.demo

stop: setup ## End the local processes; deletes nothing
	@$(BIN)/phiflow stop

azure-demo: setup ## The same journey on an emulator of Azure Machine Learning, through the real SDK
	@$(BIN)/python -m tests.azure_demo

azure-stop: setup ## End the emulator; its state stays
	@$(BIN)/python -m tests.azure_demo stop

azure-smoke: setup ## A cheap real run on Azure under a cost cap, torn down at the end: make azure-smoke MAX_COST=5
	@$(BIN)/python -m flows.smoke deployments/azure-cpu.yaml --max-cost $(or $(MAX_COST),5) --evidence $(or $(EVIDENCE),azure-smoke)


test: .venv/.test-tools ## Set-up, linters, types and the default tests
	@$(MAKE) --no-print-directory lint
	@bash tests/run.sh -m "not slow and not gpu"

test-all: .venv/.test-tools ## The slow tests too
	@$(MAKE) --no-print-directory lint
	@bash tests/run.sh -m "not gpu"

.venv/.test-tools: .venv/.complete tests/requirements.txt
	@$(UV) pip install --quiet --python $(BIN)/python -r tests/requirements.txt
	@touch $@

lint: .venv/.test-tools ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { echo "Some files are not formatted: run $(BIN)/ruff format"; exit 1; }
	@$(BIN)/mypy

lock: setup ## Resolve every environments/*/requirements.in again
	@for folder in environments/*/; do \
		test -f $$folder/requirements.in || continue; \
		$(UV) pip compile $$folder/*.in --universal --python-version 3.11 --upgrade --quiet \
			--no-header --no-annotate --no-emit-index-url --no-emit-find-links $(NO_CUDA) -o $$folder/requirements.txt; \
	done
	@cp environments/training/requirements.txt environments/training/azure.txt # the pins to keep where they can be
	@$(UV) pip compile environments/training/requirements.in environments/training/azure/requirements.in \
		--universal --python-version 3.11 --quiet \
		--no-header --no-annotate --no-emit-index-url --no-emit-find-links $(NO_CUDA) -o environments/training/azure.txt

clean: ## End everything and delete .venv; the state folder stays
	@test ! -x $(BIN)/phiflow || $(BIN)/phiflow stop
	@rm -rf .venv
