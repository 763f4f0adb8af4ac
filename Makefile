# make demo        train a VAE on real digits        make test   run the tests        make lint   ruff and mypy
# make test-slow   the longer tests: every compiled GPU kernel, executed, and every small change to one noticed
# Each sets up .venv on first use: Python, make and a network are all it needs.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
SOURCES := pyproject.toml setup.py constraints.txt $(wildcard kernels/cpu/*.c kernels/cpu/*.h)

.PHONY: demo test test-slow lint clean

demo: $(VENV)/installed
	$(RUN) -m examples.digits

test: $(VENV)/installed
	$(RUN) -m pytest

test-slow: $(VENV)/installed
	$(RUN) -m pytest -m slow

# mypy finds packages by folder: it is shown the layout that gets installed, with kernels/ inside fastvae/.
lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	rm -rf build/typed && mkdir -p build/typed
	cp -r fastvae build/typed/fastvae && cp -r kernels build/typed/fastvae/kernels
	MYPYPATH=build/typed $(VENV)/bin/mypy -p fastvae

$(VENV)/installed: $(SOURCES)
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet -c constraints.txt -e ".[demo,test,lint]"
	touch $@

clean:
	rm -rf $(VENV) build demo *.egg-info kernels/cpu/*.so
