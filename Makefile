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

# An environment for `make families5`.
NEWER = build/transformers5

# The same with the package that `make cuda` leaves.
EMULATED = cd tests && PYTHONPATH=$(CURDIR)/build/emulated/python $(PYTHON)

# An environment for `make flower`: Flower and Ray, then all that PYTHON has.
FLOWER = build/flower

.PHONY: arm-kernels arm-train cascade check clean compaction compiled compressed corrections crash cuda cuda-steps data dev \
    docs dpo durability encoder-peers encoder-service encoder-types families families5 faults fleet flower fuzz fuzz-daemon help home-assistant home-assistant-app install installs kernel-sets kernel-sets-arm kills kinds learning life like lint load machine memory methods own-engine \
    peers picture preferences pressure prompts proofs ready recipes release retrieval rollout samples sanitize second-task service slow smoke teacher test tutor wheels

help: ## this list
	@grep -E '^[a-z0-9-]+:.* ## ' $(firstword $(MAKEFILE_LIST)) | sed 's/:.* ## /\t/' | expand -t 14

ready:
	@$(RUN) -c "import edgetune.backends.cpu" 2> /dev/null || \
	    { echo "edgetune is not installed for $(PYTHON): run make install EXTRAS=test, or make dev" >&2; exit 1; }

docs: ready ## the generated pages: docs/reference, the tables of docs/how-to/choose-a-model.md, llms.txt
	$(RUN) ../docs/tools/generate.py

picture: ready ## docs/img/page-*.png: the page of a daemon that has learned; minutes the first time (playwright, Chromium)
	$(RUN) ../docs/tools/picture.py

# Of llama.cpp only what edgetune uses: pip alone compiles more than twice as much. Wheels in dist/ are used if there are some.
install: ## edgetune with the extras EXTRAS (demo), into the environment of PYTHON
	CMAKE_ARGS="-DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama.cpp_INCLUDE=$(CURDIR)/packaging/llama.cmake" \
	    $(PYTHON) -m pip install --prefer-binary $(if $(wildcard dist/*.whl),--find-links dist) '.[$(or $(EXTRAS),demo)]'

dev: ## the extension, into edgetune/backends/, for work in this checkout
	$(CMAKE) -B build/dev -DPython_EXECUTABLE=$$(command -v $(PYTHON))
	$(BUILD) build/dev -j $(JOBS)
	for so in build/dev/_native.*.so; do cp $$so edgetune/backends/native.tmp && mv edgetune/backends/native.tmp edgetune/backends/$$(basename $$so); done

# Of the files that have one, since it would take longer to read all tests than to run these.
smoke: ready ## a minute: tests marked smoke, some of each room
	$(RUN) -m pytest -n $(JOBS) -m smoke $$(grep -rl --include='test_*.py' 'mark\.smoke' .)

test: ready ## the tests, against the edgetune that PYTHON has
	$(RUN) -m pytest

# .ci/lint.txt has what it needs. The format of the C is `clang-format -i` with that version.
C_SOURCES = $(shell find native -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' -o -name '*.cc')
lint: ## ruff, clang-format, codespell and mypy; warnings are errors
	$(PYTHON) -m ruff check .
	$(PYTHON) -c "from clang_format import clang_format; clang_format()" --dry-run -Werror $(C_SOURCES)
	$(PYTHON) -m codespell_lib
	$(PYTHON) -m mypy

data: ## a minute, needs a network: the public data sets of docs/results into ../shared/data, checked; DATA="--folder DIR --only snips"
	$(PYTHON) tests/proofs/public_data.py $(DATA)

check: ## the kernels' harness, on every kernel set that this CPU can run; AMX's tiles are emulated if it has none
	$(CMAKE) -B build/check/$(CC) -DET_EXTENSION=OFF -DET_CHECK=ON \
	    -DET_EMULATE_TILES=$(if $(shell grep -m1 amx_bf16 /proc/cpuinfo),OFF,ON)
	$(BUILD) build/check/$(CC) -j $(JOBS)
	build/check/$(CC)/et_check

# Leaves a package with the emulated GPU in build/emulated/python. COMPILE: what NVIDIA's compilers are to compile. What is
# C++ are the emulated kernels alone.
cuda: ## many minutes: the GPU's kernels on the emulator: harness under the address sanitizer, planted faults, training; NVIDIA's compilers on them
	$(CMAKE) -B build/emulated/check -DET_CHECK=ON -DET_EMULATE=ON -DET_SCALAR=ON -DET_EXTENSION=OFF \
	    -DCMAKE_CXX_FLAGS="-fsanitize=address -fno-omit-frame-pointer --param=asan-use-after-return=0" \
	    -DCMAKE_EXE_LINKER_FLAGS=-fsanitize=address
	$(BUILD) build/emulated/check -j $(JOBS)
	build/emulated/check/et_check cuda
	$(PYTHON) tests/cuda/planted.py build/emulated/check
	$(CMAKE) -B build/emulated -DET_EMULATE=ON -DET_SCALAR=ON -DPython_EXECUTABLE=$$(command -v $(PYTHON))
	$(BUILD) build/emulated -j $(JOBS)
	rm -rf build/emulated/python && mkdir -p build/emulated/python && cp -r edgetune build/emulated/python
	rm -f build/emulated/python/edgetune/backends/*.so
	cmake --install build/emulated --prefix build/emulated/python
	$(EMULATED) -m pytest -n $(JOBS) -m '' cuda backends/test_binding.py
	$(EMULATED) cuda/compile.py $(COMPILE)

cuda-steps: ready ## many minutes, after `make cuda`: ten steps of SmolLM2 on the emulated GPU and on this CPU
	$(EMULATED) cuda/steps.py

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

proofs: ready ## minutes, needs the rows of make data: the Snips recipe, compared with PEFT in fp32, trained and served; llama.cpp's perplexity
	$(RUN) peers/snips.py --serve
	$(RUN) -m pytest -n 0 -s -m '' models/test_parity.py

slow: ready ## many minutes: the tests that `pytest` leaves out, marked slow
	$(RUN) -m pytest -m slow

learning: ready ## many minutes: what trainings are to reach, with every kernel set that this CPU runs and three seeds
	for isa in $$($(RUN) -c '$(RUNNABLE)' | tr ';' ' '); do for seed in 0 1 2; do \
	    (export EDGETUNE_ISA=$$isa EDGETUNE_TEST_SEED=$$seed; $(RUN) -m pytest -m learning) || exit 1; \
	done; done

durability: ready ## minutes: 200 kills at random moments, a kill between any two changes of the disk, the same bytes
	$(RUN) proofs/kill.py
	$(RUN) proofs/kill.py --method grpo --kills 30
	$(RUN) -m pytest -m '' training/test_durability.py training/test_resume.py

faults: ready ## an hour: the n-th open, write, sync, rename, mapping, thread and allocation of actions fails, for each n
	$(RUN) -m pytest -n 0 -s -m '' test_faults.py

crash: ready ## minutes: the daemon killed at KILLS random moments (100), all that it accepted still there
	$(RUN) proofs/crash.py --kills $(or $(KILLS),100)

kills: ready ## many minutes: commands that write and jobs of the daemon killed KILLS times each (40), then run again
	$(RUN) proofs/kills.py --kills $(or $(KILLS),40)

pressure: ready ## another process takes the memory of a training in a cgroup, and gives it back (needs root)
	$(RUN) -m pytest -n 0 -m '' training/test_throttle.py

peers: ready ## many minutes: training speed, compared with PEFT in fp32, bf16, compiled bf16 and bitsandbytes NF4
	$(RUN) peers/speed.py

cascade: ready ## an hour, needs the rows of make data and edgetune pull minilm: an encoder before SmolLM2 on Snips
	$(RUN) peers/cascade.py

encoder-peers: ready ## an hour, needs the rows of make data and edgetune pull minilm: MiniLM learns Snips, compared with PyTorch
	$(RUN) peers/encoder.py

kernel-sets: ready ## twenty minutes: a step by each kernel set of this CPU, beside the peak of its registers
	$(RUN) proofs/kernel_sets.py here

kernel-sets-arm: ## seconds, needs llvm-mca 15: inner loops of aarch64's kernel sets in models of its cores
	$(PYTHON) tests/proofs/kernel_sets.py arm --cc $(ARM_CC) --mca $(or $(MCA),llvm-mca)

memory: ready ## many minutes: peaks as planned and as measured, budgets, 1.1 billion weights in 350M
	$(RUN) proofs/memory.py

load: ready ## seven minutes: 32 clients chat with a daemon that trains and promotes; answers, first token, memory
	$(RUN) proofs/load.py

life: ready ## an hour, needs the rows of make data: a daemon learns Snips from corrections, refuses wrong ones; LIFE="--state DIR" to continue it
	$(RUN) proofs/life.py $(LIFE)

compaction: ready ## minutes each, needs the rows of make data: what ended simulations of make life learned, learned again together; COMPACTION="--lives DIR ..."
	$(RUN) proofs/compaction.py $(COMPACTION)

methods: ready ## an hour or more, the rows of make data for snips: methods compared on a task, three seeds; METHODS="sums --only grpo rest"
	$(RUN) proofs/methods.py $(or $(METHODS),sums)

houses: ready ## an hour, needs shared data of Home Assistant and edgetune pull minilm: houses trained from their entities, asked a benchmark
	$(RUN) proofs/houses.py $(HOUSES)

families: ready ## hours, needs the rows of make data: adapter families on Snips, a learning rate each; FAMILIES="--rows 30 --seeds 0 --only sora"
	$(RUN) proofs/families.py $(FAMILIES)

fleet: ready ## hours, needs the rows of make data and edgetune pull minilm: devices that each know two intents of Snips learn all; FLEET="--rounds 4 --seeds 0"
	$(RUN) proofs/fleet.py $(FLEET)

flower: ready ## half an hour, needs a network the first time: 1,000 simulated devices of Flower, then real servers and nodes that are killed
	test -e $(FLOWER)/made || { $(PYTHON) -m venv --clear $(FLOWER) \
	    && $(PYTHON) -c "import sys; print(*(p for p in sys.path if p.endswith('-packages')), sep='\n')" \
	        > $$(echo $(FLOWER)/lib/python3*/site-packages)/parent.pth \
	    && $(FLOWER)/bin/python -m pip install --quiet 'flwr[simulation]>=1.42,<1.43' && touch $(FLOWER)/made; }
	cd tests && PYTHONPATH=$(SOURCES) ../$(FLOWER)/bin/python -m pytest -n 0 fleet/test_flower_apps.py
	$(RUN) proofs/flower.py --flower $(CURDIR)/$(FLOWER)/bin/python
	cd tests && PYTHONPATH=$(SOURCES) ../$(FLOWER)/bin/python proofs/flower_simulation.py $(SIMULATION)

# transformers 5 in front of all that PYTHON has: the same edgetune, PyTorch and PEFT.
families5: ready ## two minutes, needs a network the first time: all families compared with transformers 5, which alone has some
	test -e $(NEWER)/made || { $(PYTHON) -m venv --clear $(NEWER) \
	    && $(PYTHON) -c "import sys; print(*(p for p in sys.path if p.endswith('-packages')), sep='\n')" \
	        > $$(echo $(NEWER)/lib/python3*/site-packages)/parent.pth \
	    && $(NEWER)/bin/python -m pip install --quiet 'transformers>=5.24,<6' && touch $(NEWER)/made; }
	cd tests && PYTHONPATH=$(SOURCES) ../$(NEWER)/bin/python -m pytest -n $(JOBS) \
	    models/test_model.py compress/test_families.py adapters/test_peft.py::test_export_gives_peft_the_same_logits

kinds: ready ## minutes: the speed of each kind of sublayer at the sizes of real models; KINDS="--models LFM2-350M"
	$(RUN) proofs/kinds.py $(KINDS)

own-engine: ready ## minutes: answers by our own engine next to llama.cpp's, tokens a CPU second
	$(RUN) proofs/own_engine.py

recipes: ready ## an hour: small data sets trained without an option, answered freely and held to their schema; RECIPES=--grid
	$(RUN) proofs/recipes.py $(RECIPES)

compressed: ready ## hours, needs the rows of make data: what compress costs, by llama.cpp's types, --target-size, width, vocabulary, for a board, as ONNX
	$(RUN) proofs/compressed.py $(COMPRESSED)

teacher: ready ## an hour, needs the rows of make data: SmolLM2 in F16 teaches its bundle of 60 MB, and itself without some blocks
	$(RUN) proofs/teacher.py $(TEACHER)

encoder-service: ready ## minutes, needs the rows of make data: a daemon of minilm, lessons of 40 corrections, answers a second, memory
	$(RUN) proofs/encoder_service.py

encoder-types: ready ## ten minutes, needs the rows of make data: all-MiniLM-L6-v2 in llama.cpp's types, its vectors and the intents named by them
	$(RUN) proofs/encoder_types.py

preferences: ready ## hours, needs the rows of make data: rates, betas and lengths of dpo, kto and orpo on two tasks; PREFERENCES="--only kto"
	$(RUN) proofs/preferences.py $(PREFERENCES)

dpo: ready ## minutes, needs trl and the rows of make data: 20 steps of DPO with TRL's trainer in fp32, loss for loss
	$(RUN) proofs/dpo_trl.py

corrections: ready ## many minutes: 40 corrections and one training in three domains, the same 40 and 20 unseen asked after it
	$(RUN) proofs/corrections.py

like: ready ## minutes, needs the rows of make data and edgetune pull minilm: corrections and the next like question; LIKE="daemon --learn"
	$(RUN) proofs/like.py $(or $(LIKE),vectors)

rollout: ready ## half an hour: adapters rolled out to 50 simulated devices in rings, bad ones among them; ROLLOUT="--seeds 0"
	$(RUN) proofs/rollout.py $(ROLLOUT)

samples: ready ## minutes: sums by one of k answers, accuracy against tokens; SAMPLES="--seeds 0 --chart FILE"
	$(RUN) proofs/samples.py $(SAMPLES)

tutor: ready ## minutes a seed: one round of the tutor, compared with its labelled rows alone; TUTOR="--labelled FILE --prompts FILE --unseen FILE"
	$(RUN) proofs/tutor.py $(TUTOR)

retrieval: ready ## minutes to hours, needs the rows of make data: passages found, answers with them, injected documents, size; RETRIEVAL="answers"
	$(RUN) proofs/retrieval.py $(or $(RETRIEVAL),found)
	$(RUN) proofs/retrieval_size.py --encoded 2500

prompts: ready ## hours, needs the rows of make data: prompts alone, an encoder and LoRA on Snips and BANKING77; PROMPTS="--seeds 0"
	$(RUN) proofs/prompts.py $(PROMPTS)

compiled: ready ## minutes, needs the rows of make data: a home's prompt, compiled once, compared with its text in each request
	$(RUN) proofs/compiled.py

second-task: ready ## an hour each, needs the rows of make data: home commands after seven rounds of Snips, then wrong labels of both
	$(RUN) proofs/second_task.py $(SECOND_TASK)

machine: ready ## half an hour: 10,000 steps of the daemon with each of 20 seeds: requests, kills, full disks, clocks; SEEDS="0 1"
	for seed in $(or $(SEEDS),$$(seq 0 19)); do \
	    ($(RUN) -m pytest -n 0 -s -m slow daemon/test_machine.py -k "long[$$seed]") || exit 1; \
	done

fuzz-daemon: ready ## minutes: 10,000 random requests, and schemathesis over the daemon's own OpenAPI
	$(RUN) proofs/fuzz_daemon.py
	$(RUN) -m pytest -m '' daemon/test_schema.py

fuzz: ready ## minutes: random damage to models and to a daemon's state; SEED=0, COUNT of each
	$(RUN) -m pytest --hypothesis-profile thorough -m hypothesis
	$(RUN) -W ignore proofs/fuzz.py --seed $(or $(SEED),0) $(if $(COUNT),--count $(COUNT))

home-assistant: ready ## minutes, needs root and, the first time, a network: a real Home Assistant, its states after 30 sentences; HOME_ASSISTANT="--home HOUSE"
	$(RUN) proofs/home_assistant.py $(HOME_ASSISTANT)

service: ready ## a minute: `edgetune service` in a systemd of its own, in namespaces over a copy of this system (root)
	$(RUN) proofs/service.py

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
