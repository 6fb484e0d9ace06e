# `make demo` and `make test` need only python3 (3.11 or newer), git and make; everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test clients docs pictures lock floors pythons clean

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
ifndef LOCKED
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group docs
endif
	$(BIN)/python docs/_make/reference.py
	$(BIN)/zensical build --strict --clean

# What the passes do, drawn into docs/images/passes; needs Graphviz.
pictures: $(READY)
	PYTHONPATH=tests $(BIN)/python docs/_make/pictures.py

# Releases with their hashes, for every platform and Python, which CI installs (LOCKED=1) and a bill of materials can list.
lock: $(READY)
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate \
		--custom-compile-command "make lock" --extra cluster --extra report --group dev --group docs pyproject.toml -o .ci/requirements.txt

# The tests with the lowest releases that pyproject.toml allows.
floors: $(READY)
	$(BIN)/uv venv --clear --seed --python $(BIN)/python build/floors
	$(BIN)/uv pip install --python build/floors --resolution lowest-direct --editable '.[cluster,report]' --group dev
	build/floors/bin/python -m pytest -n auto --ignore=tests/clients

# The wheel in an empty environment of each Python that this machine has.
pythons: $(READY)
	$(BIN)/python .ci/try_wheel.py $(PYTHONS)

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; run: make PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)
ifdef LOCKED
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement .ci/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
else
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[cluster,report]' --group dev
endif
	touch $@

clean:
	rm -rf $(VENV) .clients tests/clients/node_modules demo-out build dist .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis
