# make quickstart   install if needed, then tune the tiny base and print the table
# make test         install if needed, then run the tests
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
# A process for each core, of one thread: the faster choice for tiny models, and two-process tests stay honest. WORKERS=0
# runs the tests in one process.
WORKERS      ?= logical
TEST_THREADS ?= 1

.PHONY: install quickstart test lint format clean
.DEFAULT_GOAL := install

install: $(VENV)/.installed

# The stamp is written last, so a half-made .venv is completed by the next call.
$(VENV)/.installed: pyproject.toml constraints.txt
	@rm -f $@
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, found " + sys.version.split()[0])'
	@$(PYTHON) -m venv $(VENV) || { echo "python -m venv failed; on Debian: apt-get install python3-venv" >&2; exit 1; }
	$(PIP) --quiet torch==2.13.0
	$(PIP) --quiet -e '.[test]'
	@if nvidia-smi -L >/dev/null 2>&1; then $(PIP) --quiet setuptools wheel && $(PIP) --quiet --no-build-isolation -e '.[deepspeed]' \
	  || echo "deepspeed did not install; everything but its strategy works without it" >&2; fi
	@touch $@

quickstart: install
	$(BIN)/ts-lightning quickstart $(ARGS)

test: install
	OMP_NUM_THREADS=$(TEST_THREADS) MKL_NUM_THREADS=$(TEST_THREADS) TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 WANDB_MODE=offline \
	  $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

lint: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: install
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean:
	rm -rf $(VENV) outputs build *.egg-info
