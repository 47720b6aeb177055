#!/usr/bin/env bash
# Puts the GPU bundle together from what `make gpu-bundle` has built, into target/gpu-bundle, and checks that it is small and
# that its programs need nothing but the C and C++ libraries of the system.
set -euo pipefail

target=${CARGO_TARGET_DIR:-target}
bundle=$target/gpu-bundle
readonly MOST_KIB=$((30 * 1024))

rm -rf "$bundle"
mkdir -p "$bundle/programs"
strip -o "$bundle/programs/gpu-bundle" "$target/release/gpu-bundle"
needed=$(ldd "$bundle/programs/gpu-bundle" | awk '{ print $1 }' |
    grep -vE '^(linux-vdso|libc|libm|libdl|librt|libpthread|libgcc_s|libstdc\+\+)\.so|ld-linux' || true)
if [[ $needed ]]; then
    echo "make gpu-bundle: its program needs $needed, which other machines may lack" >&2
    exit 1
fi
for name in layerstream disk2gpu golden-check kernels targets; do
    ln -s gpu-bundle "$bundle/programs/$name"
done
{
    printf '%s, ' "$("$bundle/programs/layerstream" --version)"
    echo "${LAYERSTREAM_COMMIT:-no commit}"
} > "$bundle/VERSION"
# What is in a directory, as an archive whose bytes depend on nothing else.
archive() { tar --directory "$@" --sort=name --owner=0 --group=0 --mtime=@0 --create . | gzip -9n; }
archive "$bundle/programs" > "$bundle/programs.tar.gz"
rm -r "$bundle/programs"
archive tests/golden/models --exclude=README.md > "$bundle/golden.tar.gz"
cp benches/gpu-bundle/run.sh "$bundle/"
cp docs/gpu-bundle.md "$bundle/README.md"
size=$(du -sk --apparent-size "$bundle" | cut -f 1)
if ((size > MOST_KIB)); then
    echo "make gpu-bundle: $bundle has $size KiB, at most $MOST_KIB are wanted" >&2
    exit 1
fi
echo "make gpu-bundle: $bundle, $size KiB; on a machine with an NVIDIA driver: $bundle/run.sh OUT"
