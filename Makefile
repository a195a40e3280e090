# The verbs of this repository. `make` alone lists them; CONTRIBUTING.md and README.md say more.
#
#   INVENTORY=staging        another inventory (a directory below inventories/, or a path)
#   ARGS='-v --limit web1'   more arguments for ansible-playbook

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

INVENTORY ?= local
ARGS ?=
CONFIRM ?=
API ?=
WHY ?=
TO ?=
RENEW ?=
TIME ?=
RELEASE ?=
BACKUP ?=
ASIDE ?=
SECRET ?=
KEY ?=
SNAPSHOT ?=
REHEARSE ?=

VENV := $(CURDIR)/.venv
export PATH := $(VENV)/bin:$(PATH)
# Where it is set, as in many containers, Ansible compiles itself anew at every run: seconds each time.
export PYTHONDONTWRITEBYTECODE :=

inventory = $(if $(wildcard inventories/$(INVENTORY)/),inventories/$(INVENTORY),$(INVENTORY))
ifeq ($(wildcard $(inventory)),)
  $(error There is no inventory `$(INVENTORY)`; there are: $(notdir $(patsubst %/,%,$(wildcard inventories/*/))))
endif
playbook = ansible-playbook --inventory $(inventory) $(ARGS)
compose = python scripts/compose.py --inventory $(inventory)

.PHONY: help
help:
	@awk 'BEGIN {FS = ":.*## "} \
	  /^##@/ {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@printf '\nINVENTORY=%s (of: %s); ARGS=... goes to ansible-playbook (of logs: to compose).\n' '$(INVENTORY)' '$(notdir $(patsubst %/,%,$(wildcard inventories/*/)))'

##@ Deploy
.PHONY: up
up: controller ## deploy the stack, installing what is missing
	@$(playbook) playbooks/site.yml

.PHONY: up-all
up-all: controller ## deploy it with the profiles `monitoring` and `logging` as well
	@$(playbook) playbooks/site.yml --extra-vars '{"site_profiles": ["monitoring", "logging"]}'

.PHONY: dev
dev: ## deploy it here with the source mounted: code changes show at once
	@$(MAKE) up INVENTORY=dev

.PHONY: check
check: controller ## say what `up` would change, and change nothing
	@$(playbook) playbooks/site.yml --check --diff

.PHONY: down
down: controller ## stop and remove the containers; data, secrets and configuration stay
	@$(playbook) playbooks/down.yml

.PHONY: clean
clean: controller ## remove the stack and ALL ITS DATA; asks first, CONFIRM=<project> answers
	@$(playbook) playbooks/clean.yml --extra-vars 'clean_confirm=$(CONFIRM)'

.PHONY: release
release: export REASON = $(value WHY)
release: controller ## deploy a new version, watched; WHY='a faster search' is kept with it
	@$(playbook) playbooks/release.yml \
	  --extra-vars "$$(python -c 'import json, os; print(json.dumps({"stack_reason": os.environ["REASON"]}))')"

.PHONY: rollback
rollback: controller ## back to the release before, or to TO=<number>
	@$(playbook) playbooks/rollback.yml $(if $(TO),--extra-vars 'rollback_to=$(TO)')

.PHONY: releases
releases: controller ## the releases that are kept, and what their switches cost
	@$(playbook) playbooks/releases.yml

.PHONY: scale
scale: controller ## as many containers as API=3 QUERY=2 PROCESSOR=2 WORKER=2 say; the inventory keeps it
	@$(if $(API)$(QUERY)$(PROCESSOR)$(WORKER),,echo 'Say how many: make scale API=3 QUERY=2 PROCESSOR=2 WORKER=2' >&2; exit 2;) \
	  $(playbook) playbooks/site.yml $(if $(API),--extra-vars '{"api_scale": $(API)}') \
	    $(if $(QUERY),--extra-vars '{"usage_query_scale": $(QUERY)}') \
	    $(if $(PROCESSOR),--extra-vars '{"usage_processor_scale": $(PROCESSOR)}') \
	    $(if $(WORKER),--extra-vars '{"birthdays_worker_scale": $(WORKER)}')

.PHONY: rotate
rotate: controller ## give SECRET=<name> another value without failing a request; SECRET=all for every one
	@$(playbook) playbooks/rotate.yml --extra-vars 'rotate_secret=$(SECRET)'

.PHONY: maintenance
maintenance: controller ## `make maintenance on` answers 503 to all but operators, `off` ends it
	@$(playbook) playbooks/maintenance.yml --extra-vars 'maintenance_state=$(filter on off,$(MAKECMDGOALS))'

.PHONY: on
on:
	@:

.PHONY: off
off:
	@:

.PHONY: unlock
unlock: controller ## clear the lock of a run that was killed
	@$(playbook) playbooks/unlock.yml

##@ Data
.PHONY: backup
backup: controller ## back up the database now; without being asked it is done every day
	@$(playbook) playbooks/backup.yml

.PHONY: offsite-key
offsite-key: controller ## the key that opens the off-site copy, to be kept elsewhere
	@$(playbook) playbooks/offsite_key.yml

.PHONY: backups
backups: controller ## the backups there are, and the moments that can be restored
	@$(playbook) playbooks/backups.yml

.PHONY: drill
drill: controller ## prove that the backups can be restored, now; without being asked it is done every night
	@$(playbook) playbooks/drill.yml

.PHONY: restore
restore: export GIVEN = $(value TIME)
restore: controller ## the database as of TIME='2026-03-31 03:15:00' (UTC), TIME=latest, RELEASE=42, BACKUP=<id> or ASIDE=<name>
	@$(playbook) playbooks/restore.yml --extra-vars 'restore_confirm=$(CONFIRM) restore_release=$(RELEASE)' \
	  --extra-vars 'restore_backup=$(BACKUP) restore_aside=$(ASIDE)' \
	  --extra-vars "$$(python -c 'import json, os; print(json.dumps({"restore_time": os.environ["GIVEN"]}))')"

.PHONY: recover
recover: export GIVEN = $(or $(value TIME),latest)
recover: controller ## the whole stack on a blank host, from the off-site copy; asks for its key, or KEY=<file>; SNAPSHOT=<id>, TIME=
	@$(playbook) playbooks/recover.yml --extra-vars 'recover_confirm=$(CONFIRM) recover_key_file=$(KEY)' \
	  --extra-vars 'recover_snapshot=$(SNAPSHOT)' \
	  --extra-vars "$$(python -c 'import json, os; print(json.dumps({"recover_time": os.environ["GIVEN"]}))')"

.PHONY: upgrade-postgres
upgrade-postgres: controller ## another major version of PostgreSQL, TO=18, rehearsed first; REHEARSE=1 stops after that; TO=17 goes back
	@$(if $(TO),,echo 'Say to which version: make upgrade-postgres TO=18' >&2; exit 2;) \
	  $(playbook) playbooks/$(if $(REHEARSE),rehearse_upgrade,upgrade_postgres).yml \
	    --extra-vars 'postgres_version=$(TO) upgrade_confirm=$(CONFIRM)'

.PHONY: forget
forget: controller ## remove the databases that restores have set aside
	@$(playbook) playbooks/forget.yml

##@ Look
.PHONY: status
status: controller ## services, release, traffic, disks, alerts at a glance; /status shows the same
	@$(playbook) playbooks/status.yml

.PHONY: journal
journal: controller ## who changed the stack, when, and how it ended
	@$(playbook) playbooks/journal.yml

.PHONY: ps
ps: controller ## containers and their health
	@$(compose) ps --all

.PHONY: logs
logs: controller ## follow the logs; ARGS='nginx' for one service, ARGS='--since 1h' for longer
	@$(compose) logs --follow --tail 100 $(ARGS)

.PHONY: shell-app
shell-app: controller ## a shell in the application's container; HOST= when there are several
	@$(compose) shell-app

.PHONY: shell-db
shell-db: controller ## psql in the database
	@$(compose) shell-db

.PHONY: certs
certs: controller ## what the certificate is and how to trust it; RENEW=1 issues a new one
	@$(playbook) playbooks/certs.yml $(if $(RENEW),--extra-vars '{"tls_renew": true}')

##@ Images
.PHONY: build
build: controller ## build or fetch the images, deploy nothing
	@$(playbook) playbooks/build.yml

.PHONY: bundle
bundle: controller ## write all images into one archive, for hosts without a registry
	@$(playbook) playbooks/bundle.yml

##@ Develop
.PHONY: test
test: development ## every check there is; TEST='lint plugins' for some, JOBS=1 one by one
	@scripts/run-tests $(or $(TEST),$(TESTS))

.PHONY: lint
lint: test-lint ## the static checks alone

.PHONY: bench
bench: development ## measure the stack; prints a table
	@python -m tests.bench

.PHONY: prove
prove: development ## what takes too long for `test`: every alert, fifty releases, hundreds of kills, power cuts, Ubuntu; four hours, as root
	@python -m pytest --capture=no --tb=short tests/prove

.PHONY: lock
lock: controller ## resolve the Python requirements anew
	@scripts/lock

# Each of these can be run alone, too: `make test-plugins`.
# The longest first; `app` comes after `rules`, which builds the image of Prometheus that both need.
TESTS := e2e releases roles acme backups images rules molecule app plugins lint controller contract
pytest = python -m pytest
# The end-to-end tests are two suites of about the same length, each with a stack of its own.
E2E := $(wildcard tests/e2e/test_[12]_*.py)

.PHONY: test-lint
test-lint: development
	@scripts/lint

.PHONY: test-controller
test-controller: development
	@$(pytest) tests/controller

.PHONY: test-plugins
test-plugins: development
	@$(pytest) tests/plugins

.PHONY: test-roles
test-roles: development
	@$(pytest) tests/roles

.PHONY: test-contract
test-contract: development
	@$(pytest) tests/contract

.PHONY: test-images
test-images: development
	@$(pytest) tests/images

.PHONY: test-rules
test-rules: development
	@$(pytest) tests/rules

.PHONY: test-app
test-app: development
	@scripts/bootstrap app
	@cd app && ../.venv-app/bin/python -m pytest

.PHONY: test-e2e
test-e2e: development
	@scripts/bootstrap browser
	@$(pytest) $(E2E)

.PHONY: test-releases
test-releases: development
	@E2E_SUITE=releases $(pytest) $(filter-out $(E2E),$(wildcard tests/e2e/test_*.py))

.PHONY: test-backups
test-backups: development
	@$(pytest) tests/backups

.PHONY: test-acme
test-acme: development
	@$(pytest) tests/acme

.PHONY: test-molecule
test-molecule: development
	@molecule test --all

.PHONY: controller
controller:
	@scripts/bootstrap run

.PHONY: development
development:
	@scripts/bootstrap dev
