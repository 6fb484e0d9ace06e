# `make demo` and `make test` need only python3 (3.11 or newer), git and make; everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test clients docs clean

demo: $(READY)
	$(BIN)/python examples/demo.py

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n auto --ignore=tests/clients

# The libraries that load what `run` writes, each in an environment of its own; docs/clients.md.
clients: $(READY) .clients/genai/.ready .clients/optimum/.ready tests/clients/node_modules/.ready
	$(BIN)/python -m pytest tests/clients

.clients/%/.ready: tests/clients/%.txt
	$(PYTHON) -m venv .clients/$*
	.clients/$*/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

# The scripts of the packages are left out: one would fetch CUDA libraries.
tests/clients/node_modules/.ready: tests/clients/package.json
	if command -v npm; then \
		npm install --prefix tests/clients --ignore-scripts --no-package-lock --no-audit --no-fund && touch $@; \
	else echo "npm is missing: what needs Node.js is skipped"; fi

docs: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group docs
	$(BIN)/python docs/_make/reference.py
	$(BIN)/zensical build --strict --clean

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; run: make PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[cluster,report]' --group dev
	touch $@

clean:
	rm -rf $(VENV) .clients tests/clients/node_modules demo-out build dist .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis
