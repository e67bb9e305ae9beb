# Each target can be given on a fresh clone: what it needs is installed first, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NAME ?= finetune

.PHONY: install demo test test-browser test-cluster test-docs test-faults lint bench rehearse schema lock clean

install: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	# torch first and by itself: where a CPU build is configured for pip it is taken, and what
	# depends on torch then installs nothing more.
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' requirements.lock)"
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps -e .
	touch $@

demo: install
	$(BIN)/compressor run demo

test: lint
	$(BIN)/python -m pytest --numprocesses auto

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
	$(BIN)/python -m pip install --quiet --constraint requirements.lock -e '.[browser]'
	$(BIN)/python -m pytest -rs tests/sweeps/test_page.py tests/explain/test_compare_page.py tests/report

# Every command of the README, with a few rows and steps; FULL=1 make test-docs: as it stands there.
test-docs: install
	$(BIN)/python -m pytest -m docs --durations=0 tests/test_readme.py

# The campaign of faults in full: kills, damage, full disks, hostile input, load. About half an hour;
# as root it also mounts small file systems. Writes outputs/faults.md. `make test` has its short form.
test-faults: install
	FAULTS=1 $(BIN)/python -m pytest --numprocesses auto --durations=20 tests/faults

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# make bench NAME=finetune writes outputs/bench/finetune.json
bench: install
	$(BIN)/python -m tests.benchmarks.$(NAME)

# The schemas that editors check recipes with; a test says when they are not current.
schema: install
	$(BIN)/compressor schema --output recipes/schema/recipe.json
	for group in model data training; do \
		$(BIN)/compressor schema --group $$group --output recipes/schema/$$group.json; done

# Every checked-in recipe's chain on a tiny model, about a minute each. RECIPES="deploy distill" for some.
rehearse: install
	$(BIN)/python -m tests.benchmarks.rehearse $(RECIPES)

# The lock file again, from pyproject.toml and today's releases, on the pinned torch. Without the
# extra gguf: llama.cpp's Python package is compiled as it is installed, which takes minutes.
lock:
	$(BIN)/python -m pip install --quiet pip-tools
	echo 'torch==2.13.0' > build-constraint.txt
	$(BIN)/pip-compile --quiet --strip-extras \
		--extra dev --extra tensorboard --extra sentencepiece --no-emit-index-url \
		--no-emit-find-links --no-header --no-annotate --constraint build-constraint.txt \
		--output-file requirements.lock pyproject.toml
	sed -i 's/^torch==2\.13\.0+cpu$$/torch==2.13.0/' requirements.lock
	rm build-constraint.txt

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache build dist outputs/store outputs/runs outputs/sweeps outputs/bench
