# What a person types in this project. Each target does the set-up it needs; `make help` lists them.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

CARGO ?= cargo
CC ?= cc
# Dependencies in exactly the versions of Cargo.lock.
CARGO_FLAGS ?= --locked

# The demo model has 4.3 MB of matrices. In this budget none of them stays in memory: every pass streams all of them.
# Each thread takes some of the budget, so their number is fixed too.
DEMO_RAM ?= 8MiB
DEMO_THREADS ?= 2

# How long `make fuzz` tries each target.
SECONDS ?= 60

# How many orders of events `make soak` tries.
SEEDS ?= 200

# rustup's directory, for a shell that was opened before rustup put it there.
export PATH := $(PATH):$(HOME)/.cargo/bin

# Benchmarks of single parts, beside the one of whole passes.
PART_BENCHES := $(filter-out packed passes,$(basename $(notdir $(wildcard benches/*.rs))))

.PHONY: help
help: ## List the targets.
	@echo 'make TARGET, where TARGET is one of:'
	sed -n 's/^\([a-z][a-z-]*\):.*## \(.*\)/  \1|\2/p' Makefile | while IFS='|' read -r name text; do
	    printf '%-10s %s\n' "$$name" "$$text"
	done

include kernels/kernels.mk

.PHONY: demo
demo: toolchain cuda-toolchain ## Build, and let the small model in demo/ answer two questions, streamed from disk.
	@$(CARGO) build $(CARGO_FLAGS) --release
	layerstream="$${CARGO_TARGET_DIR:-target}/release/layerstream"
	flags='--chat --ram $(DEMO_RAM) --threads $(DEMO_THREADS) --stats'
	for question in 'What is the capital of United States?' 'How does layer streaming work?'; do
	    printf '\n$$ %s generate demo "%s" %s\n' "$$layerstream" "$$question" "$$flags"
	    "$$layerstream" generate demo "$$question" $$flags
	done

.PHONY: test
test: toolchain cuda-toolchain ## Run every test, those of the kernels on this CPU included, and the examples in the documentation.
	@$(CARGO) test $(CARGO_FLAGS) --workspace --lib --bins --tests
	$(CARGO) test $(CARGO_FLAGS) --workspace --doc
	echo 'make test: every test passed.'

.PHONY: soak
soak: toolchain cuda-toolchain ## Run the CUDA backend on the simulated driver under SEEDS orders of events (200).
	@SEEDS=$(SEEDS) $(CARGO) test $(CARGO_FLAGS) --workspace --test cuda bits::
	echo 'make soak: $(SEEDS) seeds, and no order made a difference.'

.PHONY: bench
bench: toolchain cuda-toolchain ## Measure whole passes against the raw drive (needs about 25 GB of disk), packed models, then single parts.
	@$(CARGO) bench $(CARGO_FLAGS) --bench passes
	$(CARGO) bench $(CARGO_FLAGS) --bench packed
	for bench in $(PART_BENCHES); do
	    $(CARGO) bench $(CARGO_FLAGS) --bench "$$bench"
	done
	echo 'make bench: results are in benches/results/.'

# Layers of the models of `make prove-size`.
LAYERS ?= all

.PHONY: prove-size
prove-size: toolchain cuda-toolchain ## Stream sparse 70B and 405B models through a simulated GPU of 4 GiB; LAYERS=2 is quick.
	@LAYERSTREAM_PROVE_LAYERS=$(LAYERS) LAYERSTREAM_PROVE_KEEP=$(if $(filter all,$(LAYERS)),1) \
	    $(CARGO) test $(CARGO_FLAGS) --workspace --test prove_size -- --nocapture

.PHONY: gpu-bundle
# Its programs know what they were built from, wherever they are taken.
gpu-bundle: export LAYERSTREAM_COMMIT := $(shell git describe --always --dirty --exclude='*' 2>/dev/null)
gpu-bundle: toolchain cuda-toolchain ## Build target/gpu-bundle: checks and benchmarks for a machine with an NVIDIA driver and nothing else.
	@$(CARGO) build $(CARGO_FLAGS) --release -p layerstream-gpu-bundle
	benches/gpu-bundle/build.sh

.PHONY: fmt
fmt: toolchain ## Format the source.
	@$(CARGO) fmt --all

.PHONY: lint
lint: toolchain cuda-toolchain ## Run clippy with warnings denied, on everything and on the library alone.
	@$(CARGO) clippy $(CARGO_FLAGS) --workspace --all-targets -- -D warnings
	$(CARGO) clippy $(CARGO_FLAGS) --lib --no-default-features -- -D warnings

.PHONY: fuzz
fuzz: toolchain ## Try random input on every fuzz target for SECONDS each (needs nightly Rust and cargo-fuzz).
	@if ! $(CARGO) +nightly fuzz --version >/dev/null 2>&1; then
	    echo 'fuzzing needs: rustup toolchain install nightly && cargo install cargo-fuzz' >&2
	    exit 1
	fi
	targets=$$($(CARGO) +nightly fuzz list)
	for target in $$targets; do
	    dict="fuzz/dict/$$target"
	    # What is found goes to the first directory; the kept corpus stays as it is.
	    mkdir -p "fuzz/found/$$target"
	    $(CARGO) +nightly fuzz run "$$target" "fuzz/found/$$target" "fuzz/corpus/$$target" -- \
	        -max_total_time=$(SECONDS) -timeout=10 -rss_limit_mb=1024 $$([ ! -f "$$dict" ] || echo "-dict=$$dict")
	done
	echo 'make fuzz: nothing was found.'

.PHONY: clean
clean: ## Remove everything that was built.
	@rm -rf target fuzz/target

# What cannot be set up without the user is named in one line.
.PHONY: toolchain
toolchain:
	@if ! command -v $(firstword $(CARGO)) >/dev/null; then
	    echo "Rust is missing; install it: curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh" >&2
	    exit 1
	fi
	needed=$$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
	found=$$($(CARGO) --version | cut -d ' ' -f 2)
	if ! printf '%s\n' "$$needed" "$$found" | sort --version-sort --check=quiet; then
	    echo "Rust $$found is too old, $$needed is needed; update it: rustup update stable" >&2
	    exit 1
	fi
	if ! command -v $(firstword $(CC)) >/dev/null; then
	    echo 'a C compiler is missing (the tokenizer has a part in C); install it: sudo apt install build-essential' >&2
	    exit 1
	fi
