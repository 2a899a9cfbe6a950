# make run          set up and serve on port 8000: the real API where CEREBRAS_API_KEY is set,
#                   otherwise its simulator
# make test         set up and run everything: format, lint, types, tests, these in four processes;
#                   JOBS=8 for more, LOOPS=uvloop for other event loops than asyncio and trio
# make test-pythons the tests on every CPython from 3.11 to 3.14 that is found; ARGS=tests/chat
#                   for some of them
# make test-newer   the tests of contrib's files with Prometheus 3 and HAProxy 3.2, from Debian's sid;
#                   as root, with debootstrap, in two minutes
# make docs         write the reference tables of contrib/docs anew from the code
#
# Longer tests:
# make faults       what a hostile network can do, on both event loops, in 1 to 2 minutes
# make chaos        every failure of upstream under a crowd, ten runs for each event loop;
#                   RUNS=100 SEED=7 for others
# make soak         good requests, faults, disconnects and upstream's failures at random for two
#                   minutes, and what is left afterwards; SECONDS=3600 SEED=7 for others
# make httpcore2    the tests of the API's side on httpcore2, the successor of httpcore
# make fuzz         bytes that a parser reads wrongly, found by atheris, a minute for each of five
#                   parsers; SECONDS=600 for longer
# make demo-report  two minutes of agents against the simulator, with a slow phase, an outage and
#                   429s, and the report of it in build/demo; SECONDS=60 for other lengths
# make selfcheck    whether the recorded times are true on this machine, idle, busy and overloaded, in
#                   about 15 minutes
#
# Benchmarks:
# make bench        this proxy beside the peers that are found here; PEERS=nginx,haproxy picks,
#                   PEERS=none is this proxy alone, ARGS=--quick is a short look, ARGS=--help lists
#                   more
# make bench-marks  each mark, its ratio, and whether it is reached, in ten to twenty minutes;
#                   BESIDE="python3.13 python3.14" measures ours with these as well
# make bench-instructions  instructions and function calls of a request and of a token, which other
#                   users of the machine do not disturb; needs valgrind
# make bench-stages the first token of a stream, stage by stage
# make bench-scale  the model of contrib/docs/scale.md, checked with simulated agents
# make bench-growth whether a request costs more beside many connections, in five minutes
# make bench-warm   what WARM_CONNECTIONS is worth after a quiet minute, 40 ms away, in 7 minutes
# make bench-gzip   what UPSTREAM_GZIP_MIN_BYTES is worth over 20 Mbit/s
# make bench-quota  what QUOTA_PACING is worth to 100 agents, in 9 minutes
# make bench-peers  install the peers that PyPI and npm have, into contrib/bench
#
# Container image:
# make image        build it with docker, podman or buildah; ARGS='--build-arg BASE=…'
# make image-test   build it with buildah on a base made by debootstrap, run it hardened and test
#                   it, in two to three minutes; as root, on Debian
# make lock         write the locks of the image anew; ARGS=--upgrade takes the newest versions
#
# Package:
# make package      build the sdist and the wheel into dist, and check both
#
# make clean        remove what these have made, but for images
#
# Python 3.11 or newer and make are all that is needed; PYTHON=python3.13 picks one.

PYTHON ?= python3
VENV   ?= .venv
LOOPS  ?= asyncio,trio
# Two more than two cores take, as some tests wait for deadlines and for other processes.
JOBS   ?= 4
BENCH  := contrib/bench
FUZZ   := contrib/fuzz
TOOLS  := build/tools
BIN    := $(VENV)/bin
# Each process takes neighbours from the collected order, so that what a module sets up is set up
# once, and one that has nothing left takes half of what another has still to do.
PYTEST := $(BIN)/python -m pytest --loops $(LOOPS) --numprocesses $(JOBS) --dist worksteal \
  --durations 20
# Errors only: what pip warns of concerns the machine's configuration, not the project.
QUIET  := --quiet --quiet --disable-pip-version-check
PIP    := $(BIN)/python -m pip install $(QUIET)

# Containers often forbid bytecode files. Then each process of the tests, 130 services among them,
# would compile the package anew, a tenth of its start's CPU, and four would rewrite every assert.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help run test test-pythons test-newer docs faults chaos soak httpcore2 fuzz lint types selfcheck bench \
  bench-warm bench-gzip bench-growth bench-instructions bench-marks bench-quota bench-scale \
  bench-stages bench-peers demo-report image image-test lock package clean

run: $(VENV)/installed
	@if [ -n "$$CEREBRAS_API_KEY$$CEREBRAS_API_KEY_FILE" ]; \
	then exec $(BIN)/ape-cerebras serve; \
	else echo "CEREBRAS_API_KEY is not set: serving the simulator" >&2; \
	     exec $(BIN)/ape-cerebras serve --demo; fi

# mypy, half a minute without its cache, runs beside the tests and is shown after them.
test:
	@$(MAKE) --silent --jobs 2 $(VENV)/installed-test $(VENV)/installed-js
	@$(MAKE) --no-print-directory lint
	@mkdir -p build; \
	$(BIN)/mypy >build/types.log 2>&1 & types=$$!; \
	status=0; $(PYTEST) || status=1; \
	wait $$types || status=1; \
	cat build/types.log; exit $$status

test-newer: $(VENV)/installed-test
	$(BIN)/python contrib/develop/newer_programs.py build/newer
	PATH=$(CURDIR)/build/newer/bin:$$PATH $(PYTEST) tests/stack/test_prometheus.py \
	  tests/stack/test_grafana.py tests/stack/test_compose.py tests/stack/test_balancers.py
	build/newer/bin/haproxy -c -dW -f contrib/haproxy/haproxy.cfg
	build/newer/bin/amtool check-config contrib/compose/alertmanager.yml

# By the names that Debian, python.org and pyenv give them. A free-threaded build has another:
# orjson has no wheel for those.
test-pythons: pyproject.toml
	@found=""; \
	for version in 3.11 3.12 3.13 3.14; do \
	  python$$version -c 'import ensurepip, venv' 2>/dev/null || continue; \
	  found="$$found $$version"; \
	  echo; echo "Python $$version"; \
	  $(MAKE) --no-print-directory PYTHON=python$$version VENV=build/python$$version \
	    build/python$$version/installed-test build/python$$version/installed-js || exit 1; \
	  build/python$$version/bin/python -m pytest --loops $(LOOPS) --numprocesses $(JOBS) \
	    --dist worksteal --quiet $(ARGS) || exit 1; \
	done; \
	test "$$found" || { echo "No python3.11 or newer is found by such a name"; exit 1; }; \
	echo; echo "Passed on$$found"

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' $(firstword $(MAKEFILE_LIST))

docs: $(VENV)/installed
	$(BIN)/python contrib/docs/reference.py
	$(BIN)/python contrib/kubernetes/monitoring/write_rules.py

faults: $(VENV)/installed-test
	$(PYTEST) -m faults

chaos: $(VENV)/installed-test
	CHAOS_RUNS=$(or $(RUNS),10) CHAOS_SEED=$(or $(SEED),1) $(PYTEST) -m chaos

soak: $(VENV)/installed-test
	PYTHONPATH=tests/support $(BIN)/python tests/faults/soak.py \
	  --seconds $(or $(SECONDS),120) --seed $(or $(SEED),1)

httpcore2: $(VENV)/installed-test
	$(PIP) httpcore2
	PYTHONPATH=tests/support $(PYTEST) -p on_httpcore2 tests/upstream tests/house/test_libraries.py

fuzz: $(FUZZ)/.venv/installed
	$(FUZZ)/.venv/bin/python $(FUZZ)/fuzz.py --seconds $(or $(SECONDS),60)

lint: $(VENV)/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/installed-test
	$(BIN)/mypy

# Each event loop, with plain HTTP and with TLS to the simulator.
selfcheck: $(VENV)/installed-selfcheck
	@status=0; for backend in asyncio trio; do for tls in "" --tls; do \
	  echo; echo "$$backend $$tls"; \
	  $(BIN)/ape-cerebras selfcheck --overload --backend $$backend $$tls || status=1; \
	done; done; exit $$status

bench: $(VENV)/installed
	$(BIN)/python contrib/bench/bench.py --peers $(or $(PEERS),all) $(ARGS)

demo-report: $(VENV)/installed-report
	$(BIN)/python contrib/demo/demo_report.py --seconds $(or $(SECONDS),120)

bench-warm bench-gzip: bench-%: $(VENV)/installed-selfcheck
	$(BIN)/python contrib/bench/worth.py $* $(ARGS)

bench-growth bench-instructions bench-stages: bench-%: $(VENV)/installed
	$(BIN)/python contrib/bench/$*.py $(ARGS)

bench-marks: $(VENV)/installed $(BESIDE:%=$(BENCH)/.venv-%/installed)
	$(BIN)/python contrib/bench/marks.py \
	  $(BESIDE:%=--python $(BENCH)/.venv-%/bin/python) $(ARGS)

bench-scale: $(VENV)/installed-test
	$(BIN)/python contrib/bench/scale.py $(ARGS)

$(BENCH)/.venv-%/installed: pyproject.toml
	$* -m venv $(@D)
	$(@D)/bin/python -m pip install $(QUIET) --editable .
	@touch $@

bench-quota: $(VENV)/installed-test
	$(BIN)/python contrib/bench/quota.py $(ARGS)

# Apart from the project's environment: what LiteLLM wants is much, and much of it is pinned.
bench-peers: | $(VENV)/bin/python
	$(PYTHON) -m venv $(BENCH)/.venv
	$(BENCH)/.venv/bin/python -m pip install $(QUIET) \
	  --requirement $(BENCH)/requirements.txt
	@if command -v npm >/dev/null; \
	then cd $(BENCH) && npm ci --silent --no-audit --no-fund --ignore-scripts; \
	else echo "No npm here: Portkey's gateway is left out"; fi
	@for name in nginx haproxy; do command -v $$name >/dev/null || [ -x /usr/sbin/$$name ] \
	  || echo "No $$name here: apt-get install $$name"; done

image: | $(VENV)/bin/python
	$(BIN)/python contrib/image/build_image.py $(ARGS)

image-test: | $(VENV)/bin/python
	$(BIN)/python contrib/image/try_image.py

lock: $(TOOLS)/installed
	$(TOOLS)/bin/python contrib/image/write_locks.py $(ARGS)

package: $(TOOLS)/installed
	rm -rf dist
	$(TOOLS)/bin/python -m build --outdir dist
	$(TOOLS)/bin/twine check --strict dist/*
	$(TOOLS)/bin/check-wheel-contents dist/*.whl
	$(TOOLS)/bin/pyroma --min 9 dist/*.tar.gz

clean:
	rm -rf $(VENV) .image build dist tests/sdks/js/node_modules \
	  $(FUZZ)/.venv $(BENCH)/.venv* $(BENCH)/node_modules .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find ape_cerebras contrib tests -name __pycache__ -prune -exec rm -r {} +

$(VENV)/bin/python:
	@found=$$($(PYTHON) --version 2>/dev/null); \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  || { echo "Python 3.11 or newer is needed, and $(PYTHON) is $${found:-not found}; on Debian 12," \
	            "Ubuntu 24.04 and newer: apt-get install python3 python3-venv; where there is" \
	            "another one: make PYTHON=python3.13"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo "$(PYTHON) has no venv; on Debian and Ubuntu:" \
	            "apt-get install $(notdir $(PYTHON))-venv"; exit 1; }
	@echo "Setting up $(VENV)" >&2
	@$(PYTHON) -m venv $(VENV)

$(FUZZ)/.venv/installed: pyproject.toml $(FUZZ)/requirements.txt | $(VENV)/bin/python
	$(PYTHON) -m venv $(FUZZ)/.venv
	$(FUZZ)/.venv/bin/python -m pip install $(QUIET) \
	  --only-binary atheris --requirement $(FUZZ)/requirements.txt --editable . \
	  || { echo "atheris comes for CPython 3.11 to 3.13 on Linux; name one with: make fuzz PYTHON=..."; \
	       exit 1; }
	@touch $@

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	@$(PIP) --editable .
	@touch $@

# A dependency group needs pip 25.1, newer than what comes with Python 3.11 to 3.13.
$(VENV)/installed-test: pyproject.toml | $(VENV)/bin/python
	$(PIP) 'pip>=25.1'
	$(PIP) --editable '.[all]' --group dev
	@touch $@ $(VENV)/installed $(VENV)/installed-report $(VENV)/installed-selfcheck

$(VENV)/installed-report: pyproject.toml | $(VENV)/bin/python
	$(PIP) --editable '.[report]'
	@touch $@ $(VENV)/installed

$(VENV)/installed-selfcheck: pyproject.toml | $(VENV)/bin/python
	$(PIP) --editable '.[selfcheck]'
	@touch $@ $(VENV)/installed

$(TOOLS)/installed: pyproject.toml | $(VENV)/bin/python
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install $(QUIET) 'pip>=25.1'
	$(TOOLS)/bin/python -m pip install $(QUIET) --group package
	@touch $@

# The JavaScript SDKs are tried where there is a Node; the tests say so where there is none.
$(VENV)/installed-js: tests/sdks/js/package-lock.json | $(VENV)/bin/python
	@if command -v npm >/dev/null; \
	then cd tests/sdks/js && npm ci --silent --no-audit --no-fund; fi
	@touch $@
