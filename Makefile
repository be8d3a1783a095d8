# make dev          the extension, into edgetune/, for work in this checkout
# make test lint    what CI runs first: the tests against the edgetune that PYTHON has, ruff and mypy
# make check        the kernels' harness, on every row that this CPU can run
# make arm-kernels  the same for the rows of aarch64, under qemu, and the row that each of four cores must pick
# make arm-train    one training in an arm64 Python under qemu, its losses beside this machine's (root: debootstrap)
# make sanitize     the harness, and training on mutated models, under the address and undefined-behaviour sanitizers
# make proofs       minutes, needs ../shared: the Snips recipe beside PEFT in fp32, trained and served
# make durability minutes: 200 kills at random moments, a kill between any two changes of the disk, the same bytes
# make crash        minutes: the daemon killed at KILLS random moments (100), all that it accepted still there
# make pressure     another process takes the memory of a training in a cgroup, and gives it back (needs root)
# make peers        many minutes: training speed beside PEFT in fp32, bf16, compiled bf16 and bitsandbytes NF4
# make trimmed      many minutes, needs ../shared: SmolLM2 with 8,192 tokens from Snips beside the whole, trained on Snips
# make memory       many minutes: peaks as planned and as measured, budgets, 1.1 billion weights in 350M
# make quantize     many minutes, needs ../shared: llama.cpp's types beside --target-size at the bytes of each
# make onnx         minutes, needs ../shared: ONNX in int8 beside llama.cpp's Q8_0, agreement, size and speed
# make heal         half an hour, needs ../shared: SmolLM2 with a quarter fewer weights, healed for 20 minutes
# make chain        minutes, needs ../shared: compressed for a board of 512 MB, trained in its memory, Snips answered
# make load         seven minutes: 32 clients chat with a daemon that trains and promotes; answers, first token, memory
# make fuzz-daemon  minutes: 10,000 random requests, and schemathesis over the daemon's own OpenAPI
# make life         half an hour, needs ../shared: a daemon learns Snips from corrections, and refuses wrong ones
# make service      a minute: `edgetune service` in a systemd of its own, in namespaces over a copy of this system (root)
# make cycles       the ARM tiles' inner loops under llvm-mca (needs llvm-19)
PYTHON ?= python3
CC ?= cc
CMAKE = cmake -S native -G "Unix Makefiles" -DCMAKE_C_COMPILER=$(CC) -DET_WERROR=ON
BUILD = cmake --build
JOBS ?= 2
ARM_CC ?= aarch64-linux-gnu-gcc
QEMU ?= qemu-aarch64 -L /usr/aarch64-linux-gnu

.PHONY: dev test lint check arm-kernels arm-train sanitize proofs durability crash pressure peers trimmed quantize onnx \
    heal chain memory load fuzz-daemon life service cycles clean

dev:
	$(CMAKE) -B build/dev -DPython_EXECUTABLE=$$(command -v $(PYTHON))
	$(BUILD) build/dev -j $(JOBS)
	for so in build/dev/_native.*.so; do cp $$so edgetune/native.tmp && mv edgetune/native.tmp edgetune/$$(basename $$so); done

test:
	cd tests && $(PYTHON) -m pytest

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

check:
	$(CMAKE) -B build/check/$(CC) -DET_EXTENSION=OFF -DET_CHECK=ON
	$(BUILD) build/check/$(CC) -j $(JOBS)
	build/check/$(CC)/et_check

# What each core must pick: Pi 3, Pi 4, Pi 5, and all that qemu knows; then each row once, for qemu is slow.
arm-kernels:
	$(CMAKE) -B build/arm/$(notdir $(ARM_CC)) -DET_EXTENSION=OFF -DET_CHECK=ON -DCMAKE_C_COMPILER=$(ARM_CC) \
	    -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64
	$(BUILD) build/arm/$(notdir $(ARM_CC)) -j $(JOBS)
	for pick in cortex-a53:neon cortex-a72:neon cortex-a76:dotprod max:i8mm; do \
	    test "$$($(QEMU) -cpu $${pick%:*} build/arm/$(notdir $(ARM_CC))/et_check --pick)" = $${pick#*:} || exit 1; \
	done
	for row in cortex-a72:neon cortex-a76:dotprod max:i8mm; do \
	    $(QEMU) -cpu $${row%:*} build/arm/$(notdir $(ARM_CC))/et_check $${row#*:} || exit 1; \
	done

arm-train:
	PYTHON=$(PYTHON) tests/arm/run.sh

proofs:
	$(PYTHON) tests/peers/snips.py --serve

durability:
	$(PYTHON) tests/proofs/kill.py
	cd tests && $(PYTHON) -m pytest -m '' test_durability.py test_resume.py

crash:
	$(PYTHON) tests/proofs/crash.py --kills $(or $(KILLS),100)

pressure:
	cd tests && $(PYTHON) -m pytest -m '' test_pace.py

peers:
	$(PYTHON) tests/peers/speed.py

trimmed:
	PYTHONPATH=$(CURDIR) $(PYTHON) tests/proofs/trimmed.py

memory:
	PYTHONPATH=$(CURDIR) $(PYTHON) tests/proofs/memory.py

chain:
	PYTHONPATH=$(CURDIR) $(PYTHON) tests/proofs/chain.py

load:
	PYTHONPATH=$(CURDIR) $(PYTHON) tests/proofs/load.py

life:
	PYTHONPATH=$(CURDIR) $(PYTHON) tests/proofs/life.py

heal:
	PYTHONPATH=$(CURDIR) $(PYTHON) tests/proofs/heal.py

quantize:
	PYTHONPATH=$(CURDIR) $(PYTHON) tests/proofs/quantize.py

onnx:
	PYTHONPATH=$(CURDIR) $(PYTHON) tests/proofs/onnx_int8.py

fuzz-daemon:
	PYTHONPATH=$(CURDIR) $(PYTHON) tests/proofs/fuzz_daemon.py
	cd tests && PYTHONPATH=$(CURDIR) $(PYTHON) -m pytest -m '' test_daemon_schema.py

service:
	PYTHONPATH=$(CURDIR) $(PYTHON) tests/proofs/service.py

cycles:
	$(PYTHON) tests/arm/cycles.py --cc $(ARM_CC)

# Leaves a package with the sanitized extension in build/sanitize/python. To run Python on it:
#   LD_PRELOAD=$$($(CC) -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=build/sanitize/python python3 ...
sanitize:
	$(CMAKE) -B build/sanitize/$(CC) -DET_CHECK=ON -DET_SANITIZE=ON -DPython_EXECUTABLE=$$(command -v $(PYTHON))
	$(BUILD) build/sanitize/$(CC) -j $(JOBS)
	rm -rf build/sanitize/python && mkdir -p build/sanitize/python/edgetune
	ln -s $(CURDIR)/edgetune/* build/sanitize/python/edgetune/ && rm -f build/sanitize/python/edgetune/*.so
	cp build/sanitize/$(CC)/_native.*.so build/sanitize/python/edgetune/
	build/sanitize/$(CC)/et_check
	cd tests && LD_PRELOAD=$$($(CC) -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 \
	    PYTHONPATH=$(CURDIR)/build/sanitize/python $(PYTHON) -m pytest test_fuzz_model.py test_optim.py

clean:
	rm -rf build edgetune/_native.*.so
