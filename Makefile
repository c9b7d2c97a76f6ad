# make demo   from nothing to a trained project        make test   every check this repository has
# make lint   the fast checks only                     make bench  the measurements in benchmarks/
# make bundle the templates, packed for the wheel      make clean  removes what checks and builds left; demo/ is yours
#
# Any Python 3.10 to 3.13 will do; name one with PYTHON=... . VENV=... puts the environment elsewhere, and PIP_FLAGS=...
# reaches every `pip install`, for example to take torch from another index.

VENV ?= .venv
PIP_FLAGS ?=
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.10; do \
	"$$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& echo "$$python" && break; done)

BIN := $(VENV)/bin
# -qq: errors only. pip warns about every index that lacks a package, which is no news where there are two.
PIP_INSTALL = "$(BIN)/python" -m pip install -qq --disable-pip-version-check -c requirements/ci.txt $(PIP_FLAGS)

# An environment that came along with a moved or copied checkout still points to the old place: install again.
$(shell [ "$$(cat "$(VENV)/.ready" 2>/dev/null)" = "$(CURDIR)" ] || rm -f "$(VENV)/.ready" "$(VENV)/.ready-for-tests")

.PHONY: demo test lint bench bundle clean distclean
.DEFAULT_GOAL := demo

demo: $(VENV)/.ready
	@.ci/demo "$(VENV)"

test: lint # one thread each: more would wait for one another
	OMP_NUM_THREADS=1 "$(BIN)/python" -m pytest -n 2 --dist loadfile --max-worker-restart 1

lint: $(VENV)/.ready-for-tests
	"$(BIN)/black" --check .
	"$(BIN)/ruff" check --quiet .
	"$(BIN)/mypy" --no-error-summary
	"$(BIN)/lint-imports" --no-logo

bench: $(VENV)/.ready-for-tests
	@for program in benchmarks/*.py; do echo "$$ python $$program"; "$(BIN)/python" "$$program" || exit 1; done

bundle: $(VENV)/.ready
	"$(BIN)/python" -m scaffold.bundle build --replace # the newest release is built anew until the version moves on

clean:
	rm -rf build dist runtime/dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find scaffold runtime tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf "$(VENV)"

$(VENV)/.ready: pyproject.toml runtime/pyproject.toml requirements/ci.txt requirements/demo.txt
	@.ci/venv "$(VENV)" "$(PYTHON)"
	@echo "Installing scaffold, treadle and torch into $(VENV): once, a minute or two, most of it torch."
	@$(PIP_INSTALL) -r requirements/demo.txt -e . -e './runtime[cli]'
	@echo "$(CURDIR)" > $@

$(VENV)/.ready-for-tests: $(VENV)/.ready requirements/dev.txt
	@echo "Installing the test tools into $(VENV)."
	@$(PIP_INSTALL) -r requirements/dev.txt
	@touch $@
