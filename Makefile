# Every target makes .venv on first use and reuses it afterwards.
PYTHON ?= python3
SEEDS ?= 1
BIN := .venv/bin
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c

.PHONY: demo test check soak chaos gpu bench bench-views bench-settings run docs site dist dist-check docs-check clean

# With what the library itself needs, and nothing for its tests.
demo: .venv/.demo
	$(BIN)/python -W ignore examples/digits.py --seeds $(SEEDS)

# All pages and all tests. What they cost is printed last; CONTRIBUTING.md has the budget.
test: .venv/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --disable-warnings tests

# What belongs to the files that differ from a commit: make check, or make check BASE=HEAD~3
BASE ?= main
check: .venv/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --disable-warnings --since $(BASE) tests

# Each method killed in twelve ways, and in half precision on the pretended GPU; fifty kills of one training, and twenty of one of two workers.
soak: .venv/.ready
	SOAK=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --disable-warnings tests/test_checkpoint.py tests/test_gpu.py -k 'killed or half or many'
	d=$$(mktemp -d); trap 'rm -rf $$d' EXIT; OMP_NUM_THREADS=1 $(BIN)/python tests/test_checkpoint.py soak $$d
	d=$$(mktemp -d); trap 'rm -rf $$d' EXIT; OMP_NUM_THREADS=1 $(BIN)/python -W ignore tests/test_lost_workers.py soak $$d

# Three hundred random sequences of fits, interrupts and changes of mind.
chaos: .venv/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore tests/test_chaos.py 300

# What docs/benchmarks.md shows, in some hours; `make docs` makes its tables of the results.
bench: bench-steps bench-losses bench-data bench-methods bench-fashion

# make bench-methods runs benchmarks/methods.py, and so on.
bench-%: .venv/.ready
	$(BIN)/python -W ignore benchmarks/$(subst -,_,$*).py

bench-views: .venv/.ready
	$(BIN)/python benchmarks/views.py
	$(BIN)/python benchmarks/views.py --seeds 3

bench-settings: .venv/.ready
	$(BIN)/python -W ignore benchmarks/settings.py
	$(BIN)/python -W ignore benchmarks/settings.py --others --epochs 12

# What a real GPU does with all of this, in eight minutes: make gpu, or make gpu ARGS="--minutes 20 --cifar ~/.fastai/data/cifar10"
gpu: .venv/.ready
	$(BIN)/python -W ignore benchmarks/gpu.py $(ARGS)

# Run one notebook and keep its outputs, fastai's tables among them: make run NB=nbs/09_callback.ipynb
run: .venv/.ready
	cd nbs && PATH=$(CURDIR)/$(BIN):$$PATH PYTHONWARNINGS=ignore::FutureWarning,ignore::DeprecationWarning,ignore:IProgress python -m nbconvert --log-level ERROR --to notebook --execute --inplace $(notdir $(NB))
	$(BIN)/nbdev-clean

# After editing a notebook or measuring: the package, clean notebooks, tables and the README.
docs: .venv/.ready
	$(BIN)/nbdev-export
	$(BIN)/nbdev-clean
	$(BIN)/python -W ignore -c "from self_supervised.cli import write_commands; write_commands()"
	$(BIN)/python docs/tables.py
	$(BIN)/python -m nbconvert --log-level ERROR --to markdown --stdout nbs/index.ipynb | sed -E 's#\]\((images/|[0-9]{2}_)#](nbs/\1#g; s#\]\(\.\./#](#g' > README.md

# The site, from notebooks, README, docs and docstrings: build/site/index.html
site: .venv/.ready
	$(BIN)/python -W ignore docs/pages.py build/pages
	$(BIN)/python -m sphinx -q -W --keep-going -c docs -b html build/pages build/site

dist: .venv/.ready
	rm -rf dist
	$(BIN)/python -m build -q

# The wheel in an empty environment runs the README; LOWEST=1 does so with the oldest versions that are supported.
lowest := torch==2.6.0 torchvision==0.21.0 fastai==2.8.9 timm==1.0.15 kornia==0.8.0 safetensors==0.4.5 filelock==3.12.0 xxhash==3.0.0 pyarrow==15.0.0 tifffile==2023.1.23.1
dist-check: dist
	d=$$(mktemp -d); trap 'rm -rf $$d' EXIT; $(PYTHON) -m venv $$d/env; \
	$$d/env/bin/pip install -q "$$(ls dist/*.whl)[distributed]" scikit-image $(if $(LOWEST),$(lowest)); \
	cp README.md tests/readme.py $$d; cd $$d; env/bin/python -W ignore readme.py README.md

docs-check: .venv/.ready
	$(BIN)/python -m pytest -q tests/test_docs.py

.venv/.demo: settings.ini setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q -e .
	touch $@

.venv/.ready: .venv/.demo
	$(BIN)/pip install -q -e '.[dev]'
	touch $@

clean:
	rm -rf .venv runs build dist *.egg-info
