# make demo | make scorecard | make bench | make bench-fleet | make test [PYTEST_ARGS="-k storm"] | make coverage | make lint | make clean
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check

.PHONY: demo scorecard bench bench-fleet test coverage lint clean
# Two pips in one environment would disturb each other.
.NOTPARALLEL:

demo: $(VENV)/demo.stamp
	@$(VENV)/bin/python -m demo

# Other pools and ours through the same chaos; three minutes, writes docs/scorecard.md.
scorecard: $(VENV)/test.stamp
	@$(VENV)/bin/python -m demo.scorecard

# gpools and its peers at the same work; six minutes, writes docs/benchmarks.md.
bench: $(VENV)/bench.stamp
	@$(VENV)/bin/python -m benchmarks --write

# The fleet pool beside its peers; a minute and a half, writes into docs/fleet.md.
bench-fleet: $(VENV)/bench.stamp
	@$(VENV)/bin/python -m benchmarks.fleet --write

test: $(VENV)/test.stamp
	@$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

# Of the core; some minutes longer than the tests alone.
coverage: $(VENV)/test.stamp $(VENV)/dev.stamp
	@$(VENV)/bin/coverage erase
	@$(VENV)/bin/coverage run -m pytest $(PYTEST_ARGS)
	@$(VENV)/bin/coverage combine -q
	@$(VENV)/bin/coverage report

lint: $(VENV)/dev.stamp
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/mypy

clean:
	rm -rf $(VENV) dist .coverage* .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/%.stamp: pyproject.toml | $(VENV)/made.stamp
	@echo "installing gpools[$*] into $(VENV) (a minute or so, once)"
	@$(PIP) install -qq --editable '.[$*]'
	@touch $@

# --clear: a venv that was interrupted, or made where ensurepip was missing,
# has a python but no pip, and would otherwise stay broken.
$(VENV)/made.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "gpools needs Python 3.10 or newer; say make PYTHON=python3.12 or the like")'
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@
