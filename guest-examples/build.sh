#!/bin/sh
# Builds all example functions and puts the components into target/components (under CARGO_TARGET_DIR, if set).
#
# The Wasm target comes by rustup. Where rustup cannot fetch it, Debian's packages stand in:
#   apt-get install rustc-web cargo-web rust-web-src lld wasi-libc
# whose standard library is built from source with rustup's linker.
set -eu
cd "$(dirname "$0")"
target=wasm32-wasip2
out="${CARGO_TARGET_DIR:-$PWD/target}"

has_target() {
    [ -d "$(rustc --print sysroot)/lib/rustlib/$target/lib" ]
}

if ! has_target && command -v rustup >/dev/null 2>&1; then
    rustup target add "$target" >&2 || true
fi

if has_target; then
    cargo build --release --target "$target" "$@"
elif [ -x /usr/bin/cargo ] && [ -d /usr/lib/wasm32-wasi ]; then
    # rustup's rust-lld and wasm-component-ld, which Debian does not package.
    host=$(rustc -vV | sed -n 's/^host: //p')
    PATH="$(rustc --print sysroot)/lib/rustlib/$host/bin:$PATH" \
        RUSTC_BOOTSTRAP=1 RUSTC=/usr/bin/rustc RUSTFLAGS="-L native=/usr/lib/wasm32-wasi" \
        /usr/bin/cargo build -Zbuild-std=std,panic_abort --release --target "$target" "$@"
else
    echo "error: no Wasm target: rustup cannot add $target, and Debian's stand-in is not installed;" \
        "run: apt-get install rustc-web cargo-web rust-web-src lld wasi-libc" >&2
    exit 1
fi

mkdir -p "$out/components"
for built in "$out/$target/release"/*.wasm; do
    name=$(basename "$built" .wasm | tr _ -)
    cp "$built" "$out/components/$name.wasm"
done
echo "components in $out/components" >&2
