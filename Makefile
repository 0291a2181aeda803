# `make demo` and `make test` set everything up in .venv from nothing.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test check clean

demo: $(READY)
	$(BIN)/python -m experiments.digits

# Shapes are checked at run time (jaxtyping, beartype) in all tests but those that trace code.
test: $(READY) check
	$(BIN)/python -m pytest -q -n 2 -m "not unchecked" --jaxtyping-packages=cflow,beartype.beartype
	$(BIN)/python -m pytest -q -n 2 -m "unchecked"

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check cflow tests experiments
	$(BIN)/pyright

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(READY)

clean:
	rm -rf .venv runs wandb
