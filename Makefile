# glass: run, test and lint from a bare machine with Python 3.11+, make and git. `make help` lists the targets.
#
# The virtual environment is installed only when pyproject.toml, constraints.txt or the native sources change: a stamp
# file in it remembers. Installing builds the native runner's extension in place; without a C++ compiler it is left out.

PYTHON ?= python3
VENV   ?= .venv
MODEL  ?= smollm2-135m
HOST   ?= 127.0.0.1
PORT   ?= 8000

BIN := $(VENV)/bin
RUN_STAMP := $(VENV)/.installed-run
DEV_STAMP := $(VENV)/.installed-dev

NATIVE := glass_core/runners/native
NATIVE_SOURCES := cmake/CMakeLists.txt $(wildcard $(NATIVE)/csrc/*.* $(NATIVE)/csrc/kernels/*.*)
ASAN_TREE := build/asan/tree
# one library each: the compiler knows where its sanitizers lie
ASAN_PRELOAD = $(foreach name,libasan.so libubsan.so libstdc++.so,$(shell $(CXX) -print-file-name=$(name)))

# pins the build's own environment too; which of the two names counts depends on pip's version
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check $(if $(CI),--quiet,) -c constraints.txt
FULLY_COVERED := glass_core/sparsity/*,glass_core/engine/scheduler.py

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test native test-native-asan lint format bench snapshot constraints clean install-run install-dev

help: ## list the targets
	@printf 'usage: make TARGET [PYTHON=%s] [MODEL=%s] [HOST=%s] [PORT=%s]\n\n' '$(PYTHON)' '$(MODEL)' '$(HOST)' '$(PORT)'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

run: install-run ## install, fetch the default model, serve it on http://HOST:PORT
	@$(BIN)/glass pull '$(MODEL)'
	@exec $(BIN)/glass serve '$(MODEL)' --host '$(HOST)' --port '$(PORT)'

test: install-dev ## the full test suite with coverage: real model, real Prometheus
	@$(BIN)/python -m tests.stack.get_prometheus
	@$(BIN)/glass pull '$(MODEL)'
	@$(BIN)/coverage erase
	$(BIN)/pytest --cov --cov-report=term --cov-fail-under=90
	$(BIN)/coverage report --include='$(FULLY_COVERED)' --fail-under=100

native: install-dev ## rebuild the native runner's extension in place, only what changed
	@rm -f $(NATIVE)/_native*.so
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@$(BIN)/python -c 'import glass_core.runners.native._native'

test-native-asan: install-dev ## the native tests on an AddressSanitizer and UBSan build of the extension
	@rm -rf $(ASAN_TREE) && mkdir -p $(ASAN_TREE)
	@cp -R glass_core tests pyproject.toml $(ASAN_TREE) && rm -f $(ASAN_TREE)/$(NATIVE)/_native*.so
	$(BIN)/cmake -S cmake -B build/asan -G Ninja -DGLASS_SANITIZE=ON -DGLASS_OUTPUT_DIR='$(CURDIR)/$(ASAN_TREE)/$(NATIVE)' \
	  -DPython_EXECUTABLE='$(abspath $(BIN)/python)' -DCMAKE_CXX_COMPILER='$(CXX)' -DCMAKE_MAKE_PROGRAM='$(abspath $(BIN)/ninja)'
	$(BIN)/cmake --build build/asan
	cd $(ASAN_TREE) && LD_PRELOAD='$(ASAN_PRELOAD)' ASAN_OPTIONS=detect_leaks=0:halt_on_error=1 \
	  UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 OMP_NUM_THREADS=1 \
	  '$(abspath $(BIN)/python)' -m pytest tests/native -q -p no:cacheprovider -m 'not model'

lint: install-dev ## ruff, mypy and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install-dev ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install-run ## decoding speed of the default model, dense and sparse
	@$(BIN)/glass pull '$(MODEL)'
	$(BIN)/glass bench decode '$(MODEL)' --sparsities 0,0.5

snapshot: install-dev ## accept the present OpenAPI schema: rewrite tests/contracts/openapi.json
	$(BIN)/python -m tests.contracts.openapi_snapshot

constraints: ## pin the versions installed in the environment: rewrite constraints.txt
	@head -n 2 constraints.txt > constraints.new
	@$(BIN)/python -m pip freeze --exclude-editable | sed -E 's/\+[a-z0-9.]+$$//' | sort -f >> constraints.new
	@mv constraints.new constraints.txt

clean: ## remove the environment and all caches (pulled models stay)
	-git clean -fdXq cmake
	rm -f $(NATIVE)/_native*.so
	rm -rf '$(VENV)' build dist .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find server glass_core tests -name __pycache__ -type d -prune -exec rm -rf {} +

install-run: $(RUN_STAMP)
install-dev: $(DEV_STAMP)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "glass needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || true)."; \
	  echo "Name another interpreter: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 1; } >&2
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' has no venv/ensurepip module. On Debian and Ubuntu: apt-get install python3-venv"; exit 1; } >&2
	@echo "creating $(VENV)"
	@$(PYTHON) -m venv '$(VENV)'

define report_extension
$(BIN)/python -c 'import glass_core.runners.native._native' 2>/dev/null || \
  echo 'The native runner was not built (it needs a C++20 compiler); torch_runner serves instead. `glass doctor` says why.'
endef

$(RUN_STAMP): pyproject.toml constraints.txt $(NATIVE_SOURCES) | $(BIN)/python
	@echo "installing glass (the first time downloads PyTorch: some minutes)"
	@$(PIP_INSTALL) -e '.[torch]'
	@$(call report_extension)
	@touch $@

# The development packages include the run-time ones, so this satisfies both stamps.
$(DEV_STAMP): pyproject.toml constraints.txt $(NATIVE_SOURCES) | $(BIN)/python
	@echo "installing glass and its development tools (the first time downloads PyTorch: some minutes)"
	@$(PIP_INSTALL) -e '.[torch,dev]'
	@$(call report_extension)
	@touch $(RUN_STAMP) $@
