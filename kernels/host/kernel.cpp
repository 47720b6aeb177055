// One .cu file, compiled for the host in one dialect: -DKERNEL_FILE="…" -D__CUDA_ARCH__=750|800|900.
// The anonymous namespace keeps the three dialects of one function apart when all of them are linked together.
#include "shim.h"

namespace {
#include KERNEL_FILE
}
