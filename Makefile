# The two main commands are `make demo` and `make test`. Both install missing packages and say so.
SHELL := /bin/bash
PY := .venv/bin/python
PYTEST := $(PY) -m pytest
PACKAGES := $(notdir $(wildcard plugins/lvp_*))
WHOLE := $(addprefix tests/,end_to_end faults hostile packaging)
export MYPYPATH := plugins
# The Debian release of the guests and of `make test-clean`; empty: this machine's.
RELEASE :=
export LVP_RELEASE := $(RELEASE)
# Images of Docker set this; each daemon and command of a test would then compile the whole project again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test check lint unit-core unit-api unit-plugins test-here test-parts test-whole test-minio test-rbd test-page test-guest \
  test-guest-lvm test-guest-service test-guest-package test-guest-all test-short test-short-here test-short-guest test-clean \
  test-some test-soak bench bench-guest soak clients packages lock clean setup-demo setup-test wheel

help:
	@printf '%s\n' \
	  'make demo            provision a real image with the embedded default configuration' \
	  'make test            run the whole test suite: lint, types, unit, servers, MinIO, LVM in a guest;' \
	  '                     RELEASE=bookworm or trixie: the Debian of the guests (default: the one here)' \
	  'make test-clean      run demo and test in a minimal Debian, as on a new machine; RELEASE as above' \
	  'make test-short      run a part for a second release: unit, LVM smoke and conformance, packages, libvirt' \
	  'make check           run lint, types and unit tests: the quick inner loop' \
	  'make test-minio      run only the tests that need a MinIO server' \
	  'make test-rbd        run only the tests that need Ceph: it installs a small one and starts it on loopback' \
	  'make test-page       use the web page in Chromium, check it with axe-core, keep screenshots in build/page' \
	  'make test-guest      run only the tests that need the booted guest with LVM' \
	  'make test-guest-all  also run the long ones: LVM faults, thin pools, the package under systemd (an hour)' \
	  'make fuzz            fuzz longer than the tests do: MINUTES=10 for each of TARGETS="urls qcow2" (default: all)' \
	  'make soak            run random operations and faults against a real daemon: SOAK_MINUTES=5 SEED=1' \
	  'make bench           compare the speed with the usual tools' \
	  'make bench-guest     compare clones with copies, on LVM in the booted guest' \
	  'make clients         generate clients from api.yaml with six generators, build and run them: NAMES="python java"' \
  'make packages        build deb and rpm for both releases, into dist/bookworm and dist/trixie' \
	  'make lock            update the pinned dependencies'

setup-demo:
	@contrib/dev/setup demo

setup-test:
	@contrib/dev/setup test

demo: setup-demo
	@$(PY) contrib/demo/demo.py

# Three at a time. Tests that need real servers, or seconds each, are marked slow and run only in `make test`.
check: setup-demo
	@contrib/dev/setup packages check
	@$(MAKE) --no-print-directory -j3 --output-sync=target unit-core unit-api unit-plugins lint

lint:
	@.venv/bin/ruff check --no-cache .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy -p provisioner $(addprefix -p ,$(PACKAGES))
	@.venv/bin/lint-imports --no-cache --no-logo 2>/dev/null || .venv/bin/lint-imports --no-cache
	@$(PY) contrib/dev/async_rules.py $(ASYNC_RULES) provisioner plugins

ASYNC_RULES := ASYNC101,ASYNC103,ASYNC104,ASYNC105,ASYNC112,ASYNC115,ASYNC116,ASYNC118,ASYNC121,ASYNC122

# Folders whose tests are all marked slow, minio, ceph or guest. To import them takes 6 s of processor time.
SLOW := $(WHOLE) $(addprefix tests/,ceph guest interleavings minio reflink)
QUICK := $(PYTEST) -q -m 'not slow and not minio and not ceph and not guest'

unit-core:
	@$(QUICK) tests/provisioner --ignore tests/provisioner/api --ignore tests/provisioner/cli

unit-api:
	@$(QUICK) tests/provisioner/api tests/provisioner/cli

unit-plugins:
	@$(QUICK) tests $(addprefix --ignore ,tests/provisioner $(SLOW))

# READY is set in the nested make that runs the suites: setup and wheel are done, so the suites start in the given order.
NEEDS := $(if $(READY),,setup-test)
WHEEL := $(if $(READY),,wheel)
SUITES := $(MAKE) --no-print-directory READY=yes --keep-going -j$(JOBS) --output-sync=target

# Each suite says how long it took, and how much of that was processor time of its own processes.
TIMED = @TIMEFORMAT='make: $@ took %R s, with %U + %S s of processor time'; time

# Suites at a time. With two of them, a quarter to a half of two processors is idle, because a guest has one and many tests
# wait. The two guests take longest, so they start first; while one of them is alone at the end, a processor is idle. The
# output of each suite comes in one piece.
JOBS := 4
test: setup-test wheel
	@$(SUITES) test-guest-lvm test-guest-service test-whole test-parts test-soak lint test-rbd test-guest-package test-minio

# On the second release LVM differs, so every command and report field is used there once: thin volumes use all but those
# that create and fill a plain one.
SHORT := smoke or TestThin or (TestPlain and (publishes or replace_swaps or grows or remove_volume))

# CI runs this on the second release, where only Python, LVM, libvirt and QEMU differ, not the project's own logic: the
# tests of `make check`, packages and libvirt. `make test RELEASE=` runs everything there.
test-short: setup-test wheel
	@$(SUITES) test-short-guest test-guest-package test-short-here

test-short-here: $(NEEDS)
	$(TIMED) $(QUICK) tests $(addprefix --ignore ,$(SLOW))
	$(TIMED) $(PYTEST) -q -m 'not minio' tests/packaging tests/plugins/lvp_guard_libvirt

test-short-guest: $(NEEDS) $(WHEEL)
	$(TIMED) $(PY) tests/guest/run.py --timeout 2400 --silence 600 --wheel build/wheel/*.whl -m 'not slow' -k '$(SHORT)' \
	  tests/guest/test_smoke.py tests/guest/lvm/test_conformance.py

TESTS :=
test-some: setup-test
	@$(PYTEST) $(TESTS)

test-clean:
	@python3 tests/clean/run.py --release '$(RELEASE)' demo test

test-here: test-parts test-whole

test-parts: $(NEEDS)
	$(TIMED) $(PYTEST) -m 'not minio and not ceph' --ignore tests/guest $(addprefix --ignore ,$(WHOLE))

# The daemon, the packages and the hostile images. These take most of the processor time.
test-whole: $(NEEDS)
	$(TIMED) $(PYTEST) -m 'not minio' $(WHOLE)

test-minio: $(NEEDS)
	$(TIMED) $(PYTEST) -m minio tests/minio tests/plugins tests/recipes

# Needs 71 MB of packages of its own, so only this suite installs them. The cluster takes 8 s to start, and 400 MB of memory;
# a second one, for erasure coding, three times as long, and 500 MB.
test-rbd: $(NEEDS)
	@contrib/dev/setup packages rbd
	$(TIMED) $(PYTEST) tests/ceph

# Random operations and faults against a real daemon with MinIO; see contrib/soak/README.md.
SOAK_MINUTES := 5
SEED := 1
soak test-soak: $(NEEDS)
	$(TIMED) $(PY) contrib/soak/soak.py --minutes $(SOAK_MINUTES) --seed $(SEED)

# axe-core (MPL 2.0) is only a tool here: it is fetched for the run and is no part of the project.
AXE := 4.14.1
test-page: setup-test
	@rm -rf build/page && mkdir -p build/page
	@cd build/page && npm pack --silent axe-core@$(AXE) >/dev/null && tar xzf axe-core-$(AXE).tgz package/axe.min.js
	@LVP_AXE=build/page/package/axe.min.js LVP_SCREENSHOTS=build/page $(PYTEST) tests/end_to_end/test_page.py tests/end_to_end/test_page_reference.py

wheel: setup-test
	@rm -rf build/wheel && $(PY) -m build --no-isolation --wheel --outdir build/wheel . >/dev/null

test-guest: test-guest-lvm test-guest-service test-guest-package

test-guest-lvm: $(NEEDS) $(WHEEL)
	$(TIMED) $(PY) tests/guest/run.py --timeout 3600 --silence 600 --wheel build/wheel/*.whl -m 'not slow' \
	  tests/guest/test_smoke.py tests/guest/lvm

test-guest-service: $(NEEDS) $(WHEEL)
	$(TIMED) $(PY) tests/guest/run.py --outside --wheel build/wheel/*.whl -m 'not slow' \
	  $(addprefix tests/guest/outside/,test_power_cut.py test_killed_harness.py test_sources.py test_release.py test_clean_session.py service)

test-guest-package: $(NEEDS)
	$(TIMED) LVP_HOST=container $(PY) tests/guest/run.py --outside tests/guest/outside/systemd

# The long ones, an hour under emulation: every fault of every LVM command, the service and the machine ended at every point
# of a job, many clients at once, the lifecycle of the package, and libvirt on LVM.
test-guest-all: export LVP_ALL_ROWS := 1
test-guest-all: test-guest
	@$(PY) tests/guest/run.py --timeout 5400 --silence 900 --wheel build/wheel/*.whl -m slow tests/guest/lvm
	@$(PY) tests/guest/run.py --outside --wheel build/wheel/*.whl -m slow tests/guest/outside/service
	@$(PY) tests/guest/run.py --outside tests/guest/outside/systemd

# One build for each Debian, because a package is for the Python of its distribution.
packages: setup-demo
	@PYTHON=python3.11 packaging/build dist/bookworm
	@PYTHON=python3.13 packaging/build dist/trixie

bench: setup-test
	@$(PY) contrib/bench/run.py

bench-guest: setup-test wheel
	@$(PY) contrib/bench/clone.py --guest --wheel build/wheel/*.whl

NAMES :=
clients: setup-test
	@$(PY) contrib/clients/run.py $(NAMES)

MINUTES := 10
TARGETS :=
fuzz: setup-test
	@$(PY) contrib/fuzz/fuzz.py --minutes $(MINUTES) $(TARGETS)

lock: setup-demo
	@uv=$$(command -v uv || echo .venv/bin/uv); \
	options="--quiet --universal --generate-hashes --no-header --no-annotate --python-version 3.11"; \
	$$uv pip compile $$options pyproject.toml -o requirements/runtime.txt && \
	$$uv pip compile $$options pyproject.toml --group test -o requirements/test.txt && \
	$$uv pip compile $$options pyproject.toml --group dev -o requirements/dev.txt && \
	$$uv pip compile $$options contrib/clients/python/generator.in -o contrib/clients/python/requirements.txt && \
	$$uv pip compile $$options contrib/ansible/requirements.in -o contrib/ansible/requirements.txt

clean:
	rm -rf .venv dist build demo-data .mypy_cache .ruff_cache .pytest_cache .hypothesis
