# Each target can be given on a fresh clone: what it needs is installed first, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NAME ?= finetune
WHEELS := $(VENV)/wheels
TORCH = $(shell grep -o '^torch==[^ ]*' requirements.lock)

.PHONY: install demo test test-browser test-cluster test-docs test-faults lint bench rehearse schema lock audit clean

install: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	# torch first and by itself: where a CPU build is configured for pip it is taken, though pip,
	# given hashes, would rather have the registry's, with several GB of CUDA packages.
	$(BIN)/python -m pip download --quiet --no-deps --dest $(WHEELS) "$(TORCH)"
	grep -qF -- "$$($(BIN)/python -m pip hash $(WHEELS)/torch-*.whl | tail -1)" requirements.lock \
		|| { echo "$(TORCH): the lock does not know this file; see .ci/lock"; exit 1; }
	$(BIN)/python -m pip install --quiet --no-deps --no-index --find-links $(WHEELS) "$(TORCH)"
	rm -r $(WHEELS)
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps -r requirements.lock
	# Of a torch with CUDA: what it needs beside, in the versions that it names.
	$(BIN)/python -m pip install --quiet -e .
	touch $@

demo: install
	$(BIN)/compressor run demo

# One thread for each of the workers, which are as many as there are cores.
test: lint build/transformers-4/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto

# transformers 4 beside the environment's own: exported models must be the same to both.
build/transformers-4/.installed: .ci/transformers-4.txt | install
	rm -rf $(@D)
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --target $(@D) -r $<
	touch $@

# Sweeps on a SLURM cluster of this one machine, and on Ray. As root: it installs Debian's slurm-wlm
# and munge, and Ray's launcher into the environment, and starts daemons on the loopback interface.
test-cluster: install
	$(BIN)/python -m pip install --quiet "hydra-ray-launcher>=1.2.2"
	tests/cluster/slurm.sh start
	$(BIN)/python -m pytest tests/cluster; code=$$?; tests/cluster/slurm.sh stop; exit $$code

# The tests of pages in a real browser, Debian's chromium; without it they are skipped, and say so.
test-browser: install
	command -v chromium > /dev/null || test "$$(id -u)" != 0 || { apt-get update --quiet=2 && \
		apt-get install --quiet=2 --yes --no-install-recommends chromium; }
	$(BIN)/python -m pip install --quiet -e '.[browser]'
	$(BIN)/python -m pytest -rs tests/runs/test_pages.py tests/runs/sweeps/test_open_page.py

# Every command of the README, with a few rows and steps; FULL=1 make test-docs: as it stands there.
test-docs: install
	$(BIN)/python -m pytest -m docs --durations=0 tests/test_readme.py

# What takes longer than `make test`, which has its short form: faults in full (kills, full disks,
# damage, hostile input, hubs; as root with small file systems of their own; outputs/faults.md), every
# cell of the README's table of families, two processes that train them all, and a new recipe of each
# checked-in one. 20 minutes on 2 cores.
test-faults: install
	FAULTS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --durations=20 tests/faults tests/support \
		tests/engine/test_processes.py tests/runs/search tests/training/test_parallel.py tests/data \
		tests/cli tests/models/test_families.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# make bench NAME=finetune writes outputs/bench/finetune.json; ARGS="--model DIR" for those that want some
bench: install
	$(BIN)/python -m tests.benchmarks.$(NAME) $(ARGS)

# The schemas that editors check recipes with; a test says when they are not current.
schema: install
	$(BIN)/compressor schema --output recipes/schema/recipe.json
	for group in model data training; do \
		$(BIN)/compressor schema --group $$group --output recipes/schema/$$group.json; done

# Every checked-in recipe's chain on a tiny model, about a minute each. RECIPES="deploy distill" for some.
rehearse: install
	$(BIN)/python -m tests.benchmarks.rehearse $(RECIPES)

# The lock file again, with today's releases: about ten minutes.
lock:
	.ci/lock

# What is known of weaknesses in what the lock pins, asked of the registry; AUDIT="-s osv" asks elsewhere.
audit: install
	$(PYTHON) -m venv build/audit
	build/audit/bin/python -m pip install --quiet pip-audit
	build/audit/bin/pip-audit --disable-pip --require-hashes --requirement requirements.lock $(AUDIT)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache build dist outputs/store outputs/runs outputs/sweeps outputs/bench
