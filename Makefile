# make quickstart   trains on digits with missing modalities and shows the results, from a fresh checkout
# make test         lint, types, tests, doctests and the README's snippets
# make docs         the documentation in docs/build/html
# make bench        speed against hand-written PyTorch
# make clean        removes caches and build outputs; make distclean the environment too
# PYTHON=python3.12 chooses the interpreter of the environment.

VENV ?= .venv
BIN := $(VENV)/bin/python
SOURCES := setup.cfg pyproject.toml

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: quickstart test docs bench clean distclean
.DELETE_ON_ERROR:
# two pips at once in one environment do not go well; the tests run in parallel by themselves
.NOTPARALLEL:

quickstart: $(VENV)/.installed
	$(BIN) -m pyro_mmvae.quickstart

# One thread per test process: two processes on two cores.
test: export OMP_NUM_THREADS := 1
# The extras that tests need are installed here: a test that would skip without one fails instead.
test: export REQUIRE_EXTRAS := 1
test: $(VENV)/.installed-test
	$(BIN) -m ruff check .
	$(BIN) -m mypy
	$(BIN) -m pytest -n 2 --quiet

docs: $(VENV)/.installed-docs
	$(BIN) -m sphinx -W --keep-going -b html docs/source docs/build/html

bench: $(VENV)/.installed
	$(BIN) -m benchmarks

$(BIN):
	tools/make_venv.sh $(VENV)

# The stamps are renewed only when the requirements change; the package itself is installed as a link to this folder.
$(VENV)/.installed: $(SOURCES) | $(BIN)
	$(BIN) -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-%: $(SOURCES) | $(BIN)
	$(BIN) -m pip install --quiet --editable ".[$*]"
	touch $@

clean:
	rm -rf build dist docs/build *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find pyro_mmvae tests benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean
	rm -rf $(VENV)
