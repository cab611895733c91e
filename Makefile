# gramme: `make run` tries the embedded model, `make test` runs every test. Needs Python >= 3.11 and nothing else.
PYTHON ?= python3
PIP = -m pip install -q --disable-pip-version-check -c constraints.txt

.PHONY: run test test-gpu test-compile test-interchange check sanitize wheel soak clean

run: .venv/ready
	.venv/bin/gramme run

# The base tier runs where torch is not installed; the torch tier adds the oracles.
test: .venv-base/ready .venv-torch/ready
	.venv-base/bin/python -m pytest
	.venv-torch/bin/python -m pytest -m torch

# On a machine with a GPU and its own torch and triton: the kernels' tests on the GPU, and quantising there.
test-gpu:
	$(PYTHON) -m pytest tests/kernels/cuda tests/quantize/test_second_device.py

# What the compiler makes of the kernels for cards that need not be here: Ampere, Ada, Hopper, Blackwell.
test-compile: .venv-torch/ready
	GRAMME_COMPILE_FOR="86 89 90 120" .venv-torch/bin/python -m pytest tests/kernels/cuda/test_compile.py

# Other projects' readers, in an environment of their own: the same weights, the same ids.
test-interchange: .venv-interchange/ready
	.venv-interchange/bin/python -m pytest tests/formats/test_interchange.py tests/text/test_published.py \
	tests/quantize/test_other_readers.py

check: .venv-base/ready
	.venv-base/bin/ruff check .
	.venv-base/bin/mypy --strict -p gramme.core -p gramme.plan -p gramme.text -p gramme.grammar -p gramme.formats
	.venv-base/bin/mypy --strict gramme/config.py gramme/request.py

# The CPU kernels' tests on a build that watches every address and every undefined operation; Python itself leaks. The
# threads on one that watches every order; where addresses are not random, as it needs them.
sanitize: SANITIZED = GRAMME_CPU_LIBRARY=build/sanitize/libgramme_cpu.so
sanitize: .venv-base/ready
	$(SANITIZED) .venv-base/bin/python -m gramme.kernels.cpu.build --sanitize
	$(SANITIZED) LD_PRELOAD="$$($${CXX:-g++} -print-file-name=libasan.so) $$($${CXX:-g++} -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	.venv-base/bin/python -m pytest tests/kernels/test_cpu.py tests/kernels/test_cpu_pool.py
	$${CXX:-g++} -std=c++17 -O1 -g -Wall -Werror -fsanitize=thread -pthread -Igramme/kernels/cpu -o build/sanitize/pool_races \
	tests/kernels/pool_races.cpp gramme/kernels/cpu/threads.cpp
	TSAN_OPTIONS=halt_on_error=1 setarch -R build/sanitize/pool_races

# One file for this platform, with the kernels compiled, for every Python 3.
wheel: .venv-base/ready
	.venv-base/bin/python -m pip wheel -q --disable-pip-version-check --no-deps -w dist .

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python $(PIP) -e .
	touch $@

.venv-base/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-base
	.venv-base/bin/python $(PIP) -e .[eval] pytest hypothesis jsonschema openai ruff mypy schemathesis
	touch $@

.venv-torch/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-torch
	.venv-torch/bin/python $(PIP) torch==2.13.0
	.venv-torch/bin/python $(PIP) -e . pytest hypothesis jsonschema transformers triton
	touch $@

.venv-interchange/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-interchange
	.venv-interchange/bin/python $(PIP) torch==2.13.0
	.venv-interchange/bin/python $(PIP) -e . pytest hypothesis transformers compressed-tensors sentencepiece mistral-common \
	gguf accelerate threadpoolctl pypcre logbar setuptools wheel
	BUILD_CUDA_EXT=0 .venv-interchange/bin/python $(PIP) --no-deps --no-build-isolation autoawq gptqmodel  # their readers alone
	touch $@

# Ten minutes of load, leaving clients and bad input: nothing may grow.
soak: .venv-base/ready
	PYTHONPATH=. .venv-base/bin/python bench/soak.py

clean:
	rm -rf .venv .venv-base .venv-torch .venv-interchange build dist *.egg-info
