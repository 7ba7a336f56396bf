PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The versions this tree was tested with; `make install CONSTRAINTS=` takes the newest instead.
CONSTRAINTS ?= constraints.txt

.PHONY: install demo test check bench clean

install: $(STAMP)

$(STAMP): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) --editable '.[data,plot,sklearn,dev]'
	touch $(STAMP)

demo: install
	$(BIN)/synopsis stream examples/seattle-weather.csv --y temp_max --x date:year --lags 1,2 --report report/

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install
	$(BIN)/pip install $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) --editable '.[bench]'
	for script in benchmarks/[a-z]*.py; do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) report predictions.csv
