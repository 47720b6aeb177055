#!/usr/bin/env bash
# Puts the GPU bundle together from what `make gpu-bundle` has built, into target/gpu-bundle, and checks that it is small and
# that its programs need nothing but the C and C++ libraries of the system.
set -euo pipefail

target=${CARGO_TARGET_DIR:-target}
bundle=$target/gpu-bundle
readonly MOST_KIB=$((30 * 1024))

rm -rf "$bundle"
mkdir -p "$bundle/golden"
for program in layerstream disk2gpu golden-check kernels; do
    strip -o "$bundle/$program" "$target/release/$program"
    needed=$(ldd "$bundle/$program" | awk '{ print $1 }' |
        grep -vE '^(linux-vdso|libc|libm|libdl|librt|libpthread|libgcc_s|libstdc\+\+)\.so|ld-linux' || true)
    if [[ $needed ]]; then
        echo "make gpu-bundle: $program needs $needed, which other machines may lack" >&2
        exit 1
    fi
done
cp benches/gpu-bundle/run.sh "$bundle/"
cp docs/gpu-bundle.md "$bundle/README.md"
cp -r tests/golden/models/*/ "$bundle/golden/"
{
    printf '%s, ' "$("$bundle/layerstream" --version)"
    git rev-parse --short HEAD 2>/dev/null || echo 'no commit'
    echo "kernels for sm_${LAYERSTREAM_CUDA_ARCHS//,/, sm_}, and PTX of the oldest"
} > "$bundle/VERSION"

size=$(du -sk --apparent-size "$bundle" | cut -f 1)
if ((size > MOST_KIB)); then
    echo "make gpu-bundle: $bundle has $size KiB, at most $MOST_KIB are wanted" >&2
    exit 1
fi
echo "make gpu-bundle: $bundle, $size KiB; on a machine with an NVIDIA driver: $bundle/run.sh OUT"
