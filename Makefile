.DEFAULT_GOAL := help
PYTHON ?= python
WORKERS ?= 2
export OMP_NUM_THREADS := 1

.PHONY: help test slow deployment check types lint format layers coverage run bench gpu demo demo-tls demo-down clean

help:  ## show what can be made
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

test: check  ## lint, types, layers and the fast tests (some minutes on 2 cores)
	$(PYTHON) -m pytest -n $(WORKERS) --cov --cov-report=term:skip-covered --cov-fail-under=90

slow:  ## the tests that start real processes: flwr run, SIGKILL and resume (more minutes)
	$(PYTHON) -m pytest -m slow

deployment:  ## the tests with real SuperNodes: TLS, node keys and every fault (about 15 minutes on a quiet machine)
	$(PYTHON) -m pytest -m deployment -s

check: lint types layers  ## everything but the tests

lint:  ## ruff
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types:  ## mypy, strict
	$(PYTHON) -m mypy

layers:  ## import-linter: arrows point down
	lint-imports

format:  ## rewrite the sources in the house's format
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

coverage:  ## which lines no test runs
	$(PYTHON) -m pytest -n $(WORKERS) --cov --cov-report=term-missing:skip-covered

run:  ## the default job, with a live table and a truthful exit code
	fednas simulate

bench:  ## every benchmark that takes less than a minute or two
	@for name in augmentation slicing merging evaluation training search_path; do $(PYTHON) benchmarks/$$name.py; done

gpu:  ## what a card does today, in at most eight minutes; without one a small part on the processor
	$(PYTHON) benchmarks/gpu.py

COMPOSE = $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose)
DEMO = $(COMPOSE) -f docker/compose.yaml
TLS = $(DEMO) -f docker/compose.tls.yaml

demo:  ## four devices in containers: a run of some minutes, then its report on a port
	$(DEMO) up --detach
	$(DEMO) logs --follow --no-log-prefix run
	@exit $$(docker wait $$($(DEMO) ps -q run))

demo-tls:  ## the same with TLS and a key for each device
	$(TLS) up --detach
	$(TLS) logs --follow --no-log-prefix run
	@exit $$(docker wait $$($(TLS) ps -q run))

demo-down:  ## end the containers of the demo, and forget their keys and state; results stay
	$(TLS) down --volumes

clean:  ## remove caches, not runs
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage* build *.egg-info
