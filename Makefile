# Each target first installs what it needs; `make` alone lists the targets.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
UV     := uv==0.13.9
# Bytecode halves the start-up time of every Dagster process; some shells disable it.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help run dev mlflow test test-reliability test-cluster test-security image image-test compose-secrets check contracts graph sbom ci publish deploy smoke lock bench clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

$(VENV)/installed: requirements.lock pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 14) or sys.exit("pipeline-assets needs Python 3.11 to 3.14, not %d.%d: set PYTHON=python3.x" % v)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(UV)
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --require-hashes -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

# Adds what tests, checks and benchmarks need: the same versions, and half as much again to download.
$(VENV)/installed-dev: $(VENV)/installed requirements-dev.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --require-hashes -r requirements-dev.lock
	@touch $@

# An independent contract checker, for one test. It needs newer packages than the project, so it has an
# environment of its own.
$(VENV)/referee/installed: $(VENV)/installed-dev Makefile
	@$(PYTHON) -m venv $(VENV)/referee
	@$(BIN)/uv pip install --quiet --python $(VENV)/referee/bin/python 'datacontract-cli[postgres]==1.2.8'
	@touch $@

run: $(VENV)/installed ## install, then load orders, train a model and write today's digest, on embedded PostgreSQL
	@$(BIN)/pipeline-assets run

dev: $(VENV)/installed ## install, then serve Dagster's UI on http://127.0.0.1:3000
	@$(BIN)/dagster dev

mlflow: $(VENV)/installed ## install, then serve MLflow's UI on http://127.0.0.1:5000
	@$(BIN)/pipeline-assets mlflow ui

# The slow tests of a file share servers, models and browsers: they run in one worker. Tests also wait for
# processes and clocks: three workers keep two cores busy.
WORKERS = $(shell $(PYTHON) -c 'import os; print(os.cpu_count() * 3 // 2)')
test: $(VENV)/installed-dev $(VENV)/referee/installed ## install, then run the tests, the fast ones first
	$(BIN)/pytest --numprocesses $(WORKERS) --quiet -m "not slow and not reliability"
	$(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder --quiet -m "slow and not reliability and not cluster and not image"

test-reliability: $(VENV)/installed-dev ## install, then run the reliability tests, for hours: kills, bad data, network faults
	$(BIN)/pytest --quiet -m reliability $(ARGS)

test-cluster: $(VENV)/installed-dev ## install, then test two worker hosts, RabbitMQ, PostgreSQL and S3 in network namespaces (as root)
	$(BIN)/pytest --quiet -rA pipeline_assets_tests/cluster

image: ## build the container image with Docker, or DOCKER=podman
	$(DOCKER) build --file deploy/Dockerfile --tag pipeline-assets .

image-test: $(VENV)/installed-dev ## build the image with Podman and test it: read-only, healthy, loads a partition (as root)
	$(BIN)/pytest --quiet -rA pipeline_assets_tests/image

compose-secrets: ## create the secrets of the Compose deployment: SOURCE=postgresql://user:password@host/database
	@deploy/compose/new-secrets $(SOURCE)

test-security: $(VENV)/installed-dev ## install, then run the attacks: every test of docs/security.md
	$(BIN)/pytest --numprocesses auto --quiet -m security

# Apart, so that `make --jobs 2 check` checks the rest while the type checker takes its minute.
CHECKS := lint types layers definitions deployment
.PHONY: $(CHECKS)
check: $(CHECKS) ## check format, lint, types, layers, the Dagster definitions, the CI files and the Dockerfile
$(CHECKS): $(VENV)/installed-dev
types:
	$(BIN)/mypy
lint:
	$(BIN)/ruff format --check --quiet
	$(BIN)/ruff check
layers:
	$(BIN)/lint-imports --no-logo
definitions:
	$(BIN)/dagster definitions validate
deployment:
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yaml
	$(BIN)/check-jsonschema --builtin-schema vendor.gitlab-ci --data-transform gitlab-ci .gitlab-ci.yml
	$(BIN)/zizmor --offline --quiet .github/workflows
	$(BIN)/hadolint deploy/Dockerfile

# The commit that a change is compared with.
BASE ?= origin/main
contracts: $(VENV)/installed ## list contracts with breaking changes since BASE but no new major version
	@$(BIN)/pipeline-assets ci contracts --since $(BASE)

graph: $(VENV)/installed ## print how the asset graph differs from the one at BASE, as Markdown
	@$(BIN)/pipeline-assets ci graph --since $(BASE)

sbom: $(VENV)/installed-dev ## write sbom.json, the bill of materials of requirements.lock (CycloneDX)
	@$(BIN)/cyclonedx-py requirements requirements.lock --pyproject pyproject.toml --mc-type application --output-reproducible --spec-version 1.6 --output-format JSON --output-file $(or $(SBOM),sbom.json)

ci: ## run all that the workflows run on a change
	.ci/run
	$(MAKE) contracts graph sbom

# A deployment is a Helm release of this name in the namespace <name>-<environment>.
RELEASE := pipeline-assets
NAMESPACE = $(RELEASE)-$(ENV)
DOCKER ?= docker
publish: ## build and push IMAGE=registry/name:tag; write its name with digest to build/image
	@mkdir -p build
	$(DOCKER) build --file deploy/Dockerfile --tag $(IMAGE) .
	$(DOCKER) push $(IMAGE)
	$(DOCKER) inspect --format '{{index .RepoDigests 0}}' $(IMAGE) > build/image

deploy: ## deploy IMAGE=registry/name@sha256:... to ENV=staging or production; roll back if it doesn't start
	helm upgrade $(RELEASE) deploy/helm --install --atomic --timeout 15m --namespace $(NAMESPACE) \
		--values deploy/helm/values-$(ENV).yaml --set-string image.reference=$(IMAGE)

smoke: ## materialize a partition of each pipeline in ENV, through its webserver's API
	kubectl --namespace $(NAMESPACE) exec deployment/$(RELEASE)-webserver -- pipeline-assets ci smoke

LOCK = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url pyproject.toml
lock: $(VENV)/installed ## resolve requirements.lock and requirements-dev.lock again from pyproject.toml
	$(LOCK) --extra sample --extra vault --extra celery --extra kubernetes --extra s3 --output-file requirements.lock
	$(LOCK) --all-extras --constraint requirements.lock --output-file requirements-dev.lock

# Others, which can take hours: scale, growth, launches, orchestrators. ARGS go to the first one.
BENCH ?= load news models overhead
bench: $(VENV)/installed-dev ## install, then measure the load, the digest, the model, the cost beside bare Dagster; or BENCH=growth
	@$(BIN)/python -m benchmarks.$(firstword $(BENCH)) $(ARGS)
	@set -e; for each in $(wordlist 2,9,$(BENCH)); do $(BIN)/python -m benchmarks.$$each; done

clean: ## remove the environment, the data folder and caches
	rm -rf $(VENV) .data .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
