#!/bin/sh
# Installs what building the kernels needs and this machine lacks, without root, from PyPI wheels into target/cuda:
# nvcc (with cicc, ptxas, fatbinary and the headers), and libclang for bindgen. Does nothing where both are found.
# build.rs looks in target/cuda after NVCC, CUDA_HOME and PATH, so nothing has to be exported afterwards.
#
#   kernels/toolchain.sh            install what is missing
#   kernels/toolchain.sh --force    install into target/cuda even where the machine has its own
set -eu
cd "$(dirname "$0")/.."
dest=${CARGO_TARGET_DIR:-target}/cuda

# nvvm is pinned with the rest: a newer one emits PTX that this ptxas refuses.
cuda_packages="cuda-toolkit[nvcc,cudart,cccl,crt]==13.0.2 nvidia-nvvm==13.0.88"
clang_packages="libclang==18.1.1"

force=${1:-}
have_nvcc() {
    [ -x "$dest/nvidia/cu13/bin/nvcc" ] && [ -f "$dest/.nvcc" ] && return 0
    [ "$force" = --force ] && return 1
    [ -n "${NVCC:-}" ] || [ -x "${CUDA_HOME:-/nonexistent}/bin/nvcc" ] || command -v nvcc >/dev/null
}
have_libclang() {
    [ -f "$dest/.libclang" ] && return 0
    [ "$force" = --force ] && return 1
    [ -n "${LIBCLANG_PATH:-}" ] && return 0
    for lib in /usr/lib/llvm-*/lib/libclang*.so* /usr/lib/*/libclang*.so* /usr/lib64/libclang.so* /usr/lib64/llvm*/lib/libclang.so*; do
        case $lib in *libclang-cpp*) continue ;; esac
        [ -e "$lib" ] && return 0
    done
    return 1
}
install() { # stamp, packages...
    stamp=$1
    shift
    if ! python3 -m pip --version >/dev/null 2>&1; then
        echo "kernels/toolchain.sh: python3 with pip is needed to fetch $* (Debian: apt-get install python3-pip)" >&2
        exit 1
    fi
    echo "installing $* into $dest"
    mkdir -p "$dest"
    # build.rs knows the target folder by this tag, which cargo writes only into a folder that it makes itself.
    tag=${dest%/cuda}/CACHEDIR.TAG
    [ -f "$tag" ] || echo 'Signature: 8a477f597d28d172789f06886806bc55' >"$tag"
    PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --upgrade --target "$dest" "$@"
    touch "$dest/$stamp"
}

# Two calls, because pip replaces a folder that both would write: nvidia/ comes from the first alone.
have_nvcc || install .nvcc $cuda_packages
have_libclang || install .libclang $clang_packages
