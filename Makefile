PYTHON ?= python3
override PYTHON := $(if $(findstring /,$(PYTHON)),$(abspath $(PYTHON)),$(PYTHON))
CC ?= cc
CMAKE = cmake -S native -G "Unix Makefiles" -DCMAKE_C_COMPILER=$(CC) -DET_WERROR=ON
BUILD = cmake --build
JOBS ?= 2
ARM_CC ?= aarch64-linux-gnu-gcc
QEMU ?= qemu-aarch64 -L /usr/aarch64-linux-gnu
CUDA_SANITIZED ?= products formats refusals ops optimizer draws cached attention
ARM_SETS ?= cortex-a72:neon cortex-a76:dotprod max:i8mm
# The source tree where `make dev` has built its extension, else the edgetune that PYTHON has installed.
SOURCES = $(if $(wildcard edgetune/backends/_native.*.so),$(CURDIR))
# From tests/: in this folder Python would find the sources, which have no kernels, before what is installed.
RUN = cd tests && PYTHONPATH=$(SOURCES) $(PYTHON)

# The same with the package that `make cuda` leaves.
EMULATED = cd tests && PYTHONPATH=$(CURDIR)/build/emulated/python $(PYTHON)

.PHONY: arm-kernels arm-train check clean crash cuda data dev docs durability fuzz help home-assistant-app install \
    installs lab lint machine ready release sanitize site slow test test-all wheels

help: ## this list
	@grep -E '^[a-z0-9-]+:.* ## ' $(firstword $(MAKEFILE_LIST)) | sed 's/:.* ## /\t/' | expand -t 14

ready:
	@$(RUN) -c "import edgetune.backends.cpu" 2> /dev/null || \
	    { echo "edgetune is not installed for $(PYTHON): run make install EXTRAS=test, or make dev" >&2; exit 1; }

docs: ready ## the generated pages: docs/reference, the tables of docs/how-to/choose-a-model.md, llms.txt
	$(RUN) ../docs/tools/generate.py

# build/pages has links to the pages and to what they link to, in the places that they have here.
SITE = docs $(wildcard *.md) examples native/README.md packaging/home-assistant/DOCS.md edgetune/daemon/page/mark.svg
site: ## the documentation as a site with search, in build/site: links and anchors are checked; needs .ci/site.txt
	rm -rf build/pages
	for page in $(SITE); do mkdir -p build/pages/$$(dirname $$page) && ln -s $(CURDIR)/$$page build/pages/$$page || exit 1; done
	$(PYTHON) -m mkdocs build --strict --clean -f docs/tools/mkdocs.yml

# Of llama.cpp only what edgetune uses, and the kernels that this CPU takes (SETS=all: all): pip alone compiles three times
# as much. Wheels in dist/ are used if there are some.
install: ## edgetune with the extras EXTRAS (none), into the environment of PYTHON; two minutes where llama.cpp is to be compiled
	@echo "compiling what is missing: llama.cpp takes about a minute and a half, the kernels half a minute"
	CMAKE_ARGS="-DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama.cpp_INCLUDE=$(CURDIR)/packaging/llama.cmake -DET_SETS=$(or $(SETS),here)" \
	    $(PYTHON) -m pip install --prefer-binary $(if $(wildcard dist/*.whl),--find-links dist) '.$(if $(EXTRAS),[$(EXTRAS)])'

dev: ## the extension, into edgetune/backends/, for work in this checkout
	$(CMAKE) -B build/dev -DPython_EXECUTABLE=$$(command -v $(PYTHON))
	$(BUILD) build/dev -j $(JOBS)
	for so in build/dev/_native.*.so; do cp $$so edgetune/backends/native.tmp && mv edgetune/backends/native.tmp edgetune/backends/$$(basename $$so); done

# ONCE=FILE: a test that passes is not run again by the next command with the same file.
test: ready ## three minutes: the tests of each room that need little (EXTRAS=test), against the edgetune that PYTHON has
	$(RUN) -m pytest $(ONCE:%=--once=%) -m 'not dev and not slow'

test-all: ready ## all tests, with those that need PyTorch, a browser or more seconds (EXTRAS=dev), but for `make slow`
	$(RUN) -m pytest $(ONCE:%=--once=%)

# .ci/lint.txt has what it needs. The format of the C is `clang-format -i` with that version.
C_SOURCES = $(shell find native -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' -o -name '*.cc')
lint: ## ruff, clang-format, codespell and mypy; warnings are errors
	$(PYTHON) -m ruff check .
	$(PYTHON) -c "from clang_format import clang_format; clang_format()" --dry-run -Werror $(C_SOURCES)
	$(PYTHON) -m codespell_lib
	$(PYTHON) -m mypy

data: ## a minute, needs a network: the public data sets of docs/results into ../shared/data, checked; DATA="--folder DIR --only snips"
	$(PYTHON) tests/lab/public_data.py $(DATA)

check: ## the kernels' harness, on every kernel set that this CPU can run; AMX's tiles are emulated if it has none
	$(CMAKE) -B build/check/$(CC) -DET_EXTENSION=OFF -DET_CHECK=ON \
	    -DET_EMULATE_TILES=$(if $(shell grep -m1 amx_bf16 /proc/cpuinfo),OFF,ON)
	$(BUILD) build/check/$(CC) -j $(JOBS)
	build/check/$(CC)/et_check

# Leaves a package with the emulated GPU in build/emulated/python. COMPILE: what NVIDIA's compilers are to compile. What is
# C++ are the emulated kernels alone.
cuda: ## many minutes: the GPU's kernels on the emulator: harness under the address sanitizer, planted faults, training; NVIDIA's compilers on them
	$(CMAKE) -B build/emulated/check -DET_CHECK=ON -DET_EMULATE=ON -DET_SETS=scalar -DET_EXTENSION=OFF \
	    -DCMAKE_CXX_FLAGS="-fsanitize=address -fno-omit-frame-pointer --param=asan-use-after-return=0" \
	    -DCMAKE_EXE_LINKER_FLAGS=-fsanitize=address
	$(BUILD) build/emulated/check -j $(JOBS)
	build/emulated/check/et_check cuda
	$(PYTHON) tests/cuda/planted.py build/emulated/check
	$(CMAKE) -B build/emulated -DET_EMULATE=ON -DET_SETS=scalar -DPython_EXECUTABLE=$$(command -v $(PYTHON))
	$(BUILD) build/emulated -j $(JOBS)
	rm -rf build/emulated/python && mkdir -p build/emulated/python && cp -r edgetune build/emulated/python
	rm -f build/emulated/python/edgetune/backends/*.so
	cmake --install build/emulated --prefix build/emulated/python
	$(EMULATED) -m pytest -n $(JOBS) -m '' cuda backends/test_binding.py
	$(EMULATED) cuda/compile.py $(COMPILE)

# What each core must pick: Pi 3, Pi 4, Pi 5, and all that qemu knows; then each set once, for qemu is slow.
arm-kernels: ## the same for aarch64's kernel sets, under qemu, and which of them each of four cores must pick
	$(CMAKE) -B build/arm/$(notdir $(ARM_CC)) -DET_EXTENSION=OFF -DET_CHECK=ON -DCMAKE_C_COMPILER=$(ARM_CC) \
	    -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64
	$(BUILD) build/arm/$(notdir $(ARM_CC)) -j $(JOBS)
	for pick in cortex-a53:neon cortex-a72:neon cortex-a76:dotprod max:i8mm; do \
	    test "$$($(QEMU) -cpu $${pick%:*} build/arm/$(notdir $(ARM_CC))/et_check --pick)" = $${pick#*:} || exit 1; \
	done
	for set in $(ARM_SETS); do \
	    $(QEMU) -cpu $${set%:*} build/arm/$(notdir $(ARM_CC))/et_check $${set#*:} || exit 1; \
	done

arm-train: ready ## one training in an arm64 Python under qemu, its losses and this machine's (root: debootstrap)
	PYTHON=$(PYTHON) PYTHONPATH=$(SOURCES) tests/arm/run.sh

lab: ready ## what measures and proves in minutes and hours: a list, or NAME=crash ARGS="--kills 3"
	$(RUN) lab/run.py $(NAME) $(ARGS)

slow: ready ## many minutes: the tests that `pytest` leaves out, marked slow
	$(RUN) -m pytest -m slow

durability: ready ## minutes: 200 kills at random moments, a kill between any two changes of the disk, the same bytes
	$(RUN) lab/run.py kill
	$(RUN) lab/run.py kill --method grpo --kills 30
	$(RUN) -m pytest -m '' training/test_durability.py training/test_resume.py

crash: ready ## minutes: the daemon killed at KILLS random moments (100), all that it accepted still there
	$(RUN) lab/run.py crash --kills $(or $(KILLS),100)

machine: ready ## half an hour: 10,000 steps of the daemon with each of 20 seeds: requests, kills, full disks, clocks; SEEDS="0 1"
	for seed in $(or $(SEEDS),$$(seq 0 19)); do \
	    ($(RUN) -m pytest -n 0 -s -m slow daemon/test_machine.py -k "long[$$seed]") || exit 1; \
	done

fuzz: ready ## minutes: random damage to models and to a daemon's state; SEED=0, COUNT of each
	$(RUN) -m pytest --hypothesis-profile thorough -m hypothesis
	$(RUN) lab/run.py fuzz --seed $(or $(SEED),0) $(if $(COUNT),--count $(COUNT))

# The kernel sets that this CPU runs; what it does not run need not be sanitized. The tiles are emulated in any case: only
# then does the sanitizer see what they read.
RUNNABLE = from edgetune.backends import cpu; print(*filter(cpu.usable, cpu.isa_names()), sep=";")
SANITIZED = $$($(RUN) -c '$(RUNNABLE)' | sed '/amx/!s/avx512bf16/amx;&/')

# Leaves a package with the sanitized extension in build/sanitize/python. To run Python on it:
#   LD_PRELOAD=$$($(CC) -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=build/sanitize/python python3 ...
sanitize: ready ## the harness, with the emulated GPU and AMX's tiles, and training on mutated models, under the address and undefined-behaviour sanitizers
	$(CMAKE) -B build/sanitize/$(CC) -DET_CHECK=ON -DET_SANITIZE="$(SANITIZED)" -DET_EMULATE_TILES=ON \
	    -DET_EMULATE=$(if $(CUDA_SANITIZED),ON,OFF) -DPython_EXECUTABLE=$$(command -v $(PYTHON))
	$(BUILD) build/sanitize/$(CC) -j $(JOBS)
	rm -rf build/sanitize/python && mkdir -p build/sanitize/python && cp -r edgetune build/sanitize/python
	rm -f build/sanitize/python/edgetune/backends/*.so
	cp build/sanitize/$(CC)/_native.*.so build/sanitize/python/edgetune/backends/
	build/sanitize/$(CC)/et_check cpu
	for subject in $(CUDA_SANITIZED); do build/sanitize/$(CC)/et_check cuda $$subject || exit 1; done
	sets=$$($(RUN) -c '$(RUNNABLE)' | tr ';' ',') && cd tests && EDGETUNE_ISA=$$sets ASAN_OPTIONS=detect_leaks=0 \
	    LD_PRELOAD=$$($(CC) -print-file-name=libasan.so) PYTHONPATH=$(CURDIR)/build/sanitize/python \
	    $(PYTHON) -m pytest -n 0 models/test_fuzz_model.py training/test_optim.py

wheels: ## manylinux wheels of edgetune and llama-cpp-python for x86-64 and aarch64, into dist/, for the Pythons named in PYTHONS
	$(PYTHON) packaging/wheels.py --jobs $(JOBS) $(or $(PYTHONS),$(PYTHON))
	$(PYTHON) packaging/llama.py --jobs $(JOBS)

home-assistant-app: ## packaging/home-assistant with the wheels of dist/, as a folder for a hub, in build/; WHOLE=1 adds all that they need
	$(PYTHON) packaging/home_assistant.py $(if $(WHOLE),--whole)

release: wheels ## the wheels, the source archive and their SHA-256, into dist/; needs Python's build
	$(PYTHON) -m build --sdist --outdir dist
	cd dist && sha256sum -- *.whl *.tar.gz > SHA256SUMS

installs: ## many minutes: the wheels in dist/ on fresh systems without a compiler (root: debootstrap)
	$(PYTHON) packaging/installs.py $(INSTALLS)

clean: ## remove build/ and the extension from the source tree
	rm -rf build edgetune/backends/_native.*.so
