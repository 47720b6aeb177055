# Targets of the kernels, to be included by the top Makefile.

CARGO ?= cargo
.PHONY: cuda-toolchain kernel-test kernel-mutants kernel-sanitize kernel-report kernel-figures

# nvcc and libclang, without root, into target/cuda; nothing where they are present.
cuda-toolchain:
	sh kernels/toolchain.sh

# Every kernel on the CPU, against float64.
kernel-test: cuda-toolchain
	$(CARGO) test -p layerstream-kernels

# Deletes each barrier, wait and bounds test in turn; fails on a survivor that kernels/survivors.txt does not explain.
# One build, then what the tests take; FILES="norm.cu tile.cuh" narrows it.
kernel-mutants: cuda-toolchain
	$(CARGO) run -q -p layerstream-kernels --example mutants -- $(FILES)

# The kernels under AddressSanitizer and UndefinedBehaviorSanitizer. (Not the tests of the host build itself, whose kernels
# are wrong on purpose.)
kernel-sanitize: cuda-toolchain
	LAYERSTREAM_HOST_SANITIZE=address,undefined ASAN_OPTIONS=verify_asan_link_order=0:detect_leaks=0 \
		$(CARGO) test -p layerstream-kernels --test kernels

# Registers, shared memory, spills and stack of every kernel for every target, from ptxas, into benches/results/ptxas.md.
# Fails on any spill or local memory, naming kernel and target.
kernel-report: cuda-toolchain
	mkdir -p benches/results
	$(CARGO) run -q -p layerstream-kernels --features workbench,device -- report --write benches/results/ptxas.md

# On a machine with an NVIDIA GPU: all checks on it, then the shapes of real models against what this card and PyTorch
# can do (python3 with torch; without it, `sweep` alone leaves out the comparisons).
kernel-figures: cuda-toolchain
	$(CARGO) run -q --release -p layerstream-kernels --features workbench,device -- check --device gpu
	$(CARGO) run -q --release -p layerstream-kernels --features workbench,device -- sweep --peers
