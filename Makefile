# `make demo` and `make test` on a fresh Debian 12 or 13. Each target does first what it needs.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

PROFILE ?= sim
PYTEST := .venv/bin/pytest
E2E := tests/sim tests/nix tests/netboot
# So many workers more than processors, because tests wait: those of `unit` a quarter of their time.
workers = -n $(shell echo $$(($$(nproc) + $(1)))) --dist loadfile --no-loadscope-reorder
LINT := tests/test_lint.py tests/test_docs.py tests/test_nothing_unchecked.py

# Debian's sshd and mount, and Nix from its own installer, also where sudo's PATH lacks them.
export PATH := $(PATH):/usr/sbin:/sbin:/nix/var/nix/profiles/default/bin

# For Nix as run from here: flakes, no build without a sandbox unless NIX_CONFIG has sandbox = false,
# and no build users where root has none (nix-bin, no daemon).
define NIX_CONFIG +=

extra-experimental-features = nix-command flakes
sandbox-fallback = false
$(if $(shell getent group nixbld),,$(if $(filter 0,$(shell id -u)),build-users-group =))
endef
export NIX_CONFIG

.PHONY: help setup demo check test lint unit image e2e long mutants requirements down clean

help: ## list the targets
	@sed -n 's/^\([a-z0-9]*\):.*## \(.*\)/  make \1	\2/p' Makefile | expand -t 21

setup: ## install what is missing (as root), make .venv; nothing to do the second time
	@tools/setup.sh --tests

demo: ## from nothing to a simulated cluster that answers a question (as root)
	@tools/setup.sh
	@tools/demo.sh $(PROFILE)

check: setup ## lint, types and unit tests, for daily use (needs no root)
	@tools/step "lint, types and unit tests" $(PYTEST) -n auto --dist worksteal $(LINT) tests/unit

test: setup lint unit image e2e ## what .ci/run runs: all tests but the long ones (as root)

lint: setup ## linters, type checks, documentation against the code
	@tools/step "lint" $(PYTEST) $(LINT)

unit: setup ## logic alone, and against real apt, pip, ssh, Nix, dnsmasq and nginx (as root)
	@tools/tests "unit and integration tests" $(call workers,2) tests/unit tests/host tests/attacks tests/image

image: setup ## fetch and build the profile's image
	@tools/image.sh $(PROFILE)

e2e: image ## the image, rebuilt and compared, and the simulated cluster end to end (as root)
	@tools/tests "end-to-end tests" $(call workers,1) --maxprocesses 4 --durations 60 -m "not long" $(E2E)

long: image ## end-to-end tests that take longest: three quarters of an hour more (as root)
	@tools/tests "long tests" $(call workers,1) --maxprocesses 4 -m long $(E2E)

mutants: setup ## break a copy on purpose, fault by fault: do tests notice? (not as root)
	@tools/step "mutants" .venv/bin/python tools/mutate.py

requirements: ## lock the newest of what .venv needs, by hash; UPDATE=NAME moves only that one
	@[ -x .venv/bin/uv ] || tools/setup.sh
	@.venv/bin/uv pip compile --quiet --universal --generate-hashes --only-binary :all: \
	  $(if $(UPDATE),--upgrade-package $(UPDATE),--upgrade) --extra dev \
	  --custom-compile-command "make requirements" --output-file requirements.txt pyproject.toml

down: ## stop the simulated cluster
	@.venv/bin/orchestrate down --profile $(PROFILE)

clean: ## remove what was made in this checkout; the image stays in the Nix store
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
