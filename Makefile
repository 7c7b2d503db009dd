# The two commands that a newcomer needs: `make demo` and `make test`. Each makes the virtual environment first.
# PIP_ARGS="--index-url …" points pip at another index; the constraints pin every version.

PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test test-full lint format docs figures experiments-quick benchmark mutation screenshots clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(PIP_ARGS) -c constraints.txt -e ".[test]"
	touch $@

demo: $(STAMP)
	$(BIN)/gradvar decompose --out out/demo --overwrite
	@echo "Look at out/demo/report.html or summary.txt first, then at layers.png (where the noise sits), batch.png (what a"
	@echo "larger batch or more masks buy) and cells.png beside them. Your own model: .venv/bin/gradvar decompose"
	@echo "--checkpoint DIR --data text.txt --out report/"

lint: $(STAMP)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m "not full"

test-full: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

format: $(STAMP)
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# The site's theme announces MkDocs' successors at every build; the versions here are pinned.
docs: $(STAMP)
	$(BIN)/pip install --quiet $(PIP_ARGS) -c constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "The site is in out/site: open out/site/index.html, or, for its search too, serve it with"
	@echo "$(BIN)/python -m http.server --directory out/site and open http://localhost:8000"

# From the numbers that are in figures/, without a model or a text; `python experiments/NAME.py` measures them.
figures: $(STAMP)
	$(BIN)/python experiments/figures.py

EXPERIMENTS := tuning cost theorem over_training proposals mapnet_quality convergence confirm glue what_helps scaling base_cost
experiments-quick: $(STAMP)
	@for name in $(EXPERIMENTS); do \
		echo "$$name.py --quick"; $(BIN)/python experiments/$$name.py --quick || exit $$?; \
	done

benchmark: $(STAMP)
	$(BIN)/pip install --quiet $(PIP_ARGS) -c constraints.txt -e ".[benchmarks]"
	$(BIN)/python benchmarks/engine.py --rounds 9 --rows benchmarks/rows.json --out docs/benchmarks.md
	$(BIN)/python benchmarks/drawing.py --out docs/drawing.md

mutation: $(STAMP)
	$(BIN)/pip install --quiet $(PIP_ARGS) -c constraints.txt -e ".[test,mutation]"
	$(BIN)/python scripts/mutation.py

screenshots: $(STAMP)
	$(BIN)/pip install --quiet $(PIP_ARGS) -c constraints.txt -e ".[screenshots]"
	$(BIN)/python scripts/screenshots.py --out out/screenshots

clean:
	rm -rf $(VENV) out build dist
