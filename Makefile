# Two commands on a fresh machine: `make demo` and `make test`. Both make .venv first, where it is missing.
# Needs Linux, Python 3.11 or newer, make and a package index.

PYTHON ?= python3
VENV := .venv
# What everybody needs, and what the demo and the tests need on top of it.
EXTRAS := deepspeed,api,remote,huggingface,tune,onnx,fast-decode,sign,tensorboard,wandb,test,docs,lint

# The same as files, by their hashes, for one platform: continuous integration says `make test HASHES=1`.
LOCK := .ci/requirements.txt

# The recipes below show the very lines that a user types with .venv active.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export VIRTUAL_ENV := $(CURDIR)/$(VENV)
unexport PYTHONPATH PYTHONHOME

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: gpu gpu-wheels help install demo test quick test-lowest test-pair test-newest docs mutants lint lock audit format clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /make \1\t/' | expand -t 20

install: $(VENV)/installed ## make .venv with the project and all it needs, at the versions of constraints.txt

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt $(if $(HASHES),$(LOCK))
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than Python 3.11; name a newer one: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
ifdef HASHES
	$(VENV)/bin/python -m pip install --quiet --require-hashes --no-deps --requirement $(LOCK)
	$(VENV)/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
else
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
endif
	@touch $@

demo: $(VENV)/installed ## the whole pipeline on bundled real data: noisy shards, pre-training, heads, report
	python -m shards.write --source digits --noise 0 0.2 --out data/shards/digits
	python slurm/launch.py pretrain --noise 0 --nodes 2 --shards data/shards/digits
	python slurm/launch.py pretrain --noise 0.2 --nodes 2 --shards data/shards/digits
	python -m probes.run --plugin lp,mlp,nmtune --tries 1 --checkpoint runs/quickstart-n00-seed0
	python -m probes.run --plugin lp,mlp,nmtune --tries 1 --checkpoint runs/quickstart-n20-seed0
	python -m probes.report results/

# One worker more than the cores that this is meant for: tests on Slurm mostly wait.
test: $(VENV)/installed lint ## lint, types and the whole test suite
	python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

quick: $(VENV)/installed ## the tests of functions and files: no Slurm, no training on several ranks
	python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder -m 'not long and not slurm'

# Each in an environment of its own: .venv-lowest and so on. Of one Python: make test-newest ON=3.13
ON := 3.11
test-lowest: $(VENV)/installed ## a short suite at the lowest versions of setup.cfg (docs/testing.md)
test-pair: $(VENV)/installed ## the same with torch 2.11 and torchvision 0.26
test-newest: $(VENV)/installed ## the same with the newest versions there are
test-lowest test-pair test-newest:
	python -m pip install --quiet --constraint constraints.txt --editable '.[dependencies]'
	python -m tests.dependencies $(@:test-%=%) --python $(ON)

# Of the Python that has PyTorch, which may be no virtual environment of ours, and on a machine without a network.
gpu: ## measure training and heads on this machine's GPU in 8 minutes; see docs/benchmarks.md
	$(PYTHON) -m benchmarks.gpu.packages unpack
	PYTHONPATH=$(CURDIR):$(CURDIR)/build/gpu-packages $(PYTHON) -m benchmarks.gpu $(ARGS)

# For another Python than 3.12: make gpu-wheels OF=3.11
OF := 3.12
gpu-wheels: $(VENV)/installed ## collect what a GPU machine without a network lacks, for make gpu
	python -m benchmarks.gpu.packages collect --python $(OF)

docs: $(VENV)/installed ## the documents as a site, build/site/index.html, with a reference of the Python interface
	NO_MKDOCS_2_WARNING=1 python -m mkdocs build

mutants: $(VENV)/installed ## change the code in many small ways and count what tests notice (docs/testing.md)
	python -m pip install --quiet --constraint constraints.txt --editable '.[mutants]'
	rm -rf mutants
	python -m tests.mutants

lint: $(VENV)/installed
	ruff check .
	ruff format --check .
	mypy

lock: $(VENV)/installed ## write the hashes of what constraints.txt names, for continuous integration
	mkdir -p build
	python -m pip install --quiet --dry-run --ignore-installed --report build/lock.json \
	  --constraint constraints.txt '.[$(EXTRAS)]'
	python .ci/lock.py build/lock.json > build/lock.txt
	mv build/lock.txt $(LOCK)

audit: ## ask a vulnerability service about what continuous integration installs; needs more network than the rest
	$(PYTHON) -m venv build/audit
	build/audit/bin/python -m pip install --quiet pip-audit==2.10.1
	@build/audit/bin/python -m pip_audit --requirement $(LOCK) --require-hashes --disable-pip --strict \
		|| { echo "audit: not passed: a package is vulnerable, or the service could not be asked; see above"; exit 1; }

format: $(VENV)/installed ## let ruff lay out the code
	ruff check --fix .
	ruff format .

clean: ## remove the environment and caches; data/, runs/ and results/ stay
	rm -rf $(VENV) $(VENV)-* build mutants .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
