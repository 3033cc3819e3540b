#!/usr/bin/env bash
# Sets up what is missing to build and test bus; does nothing where nothing is missing, and never asks.
# Needs a Rust toolchain (rustup) and a C compiler. Brings the target wasm32-wasip2, in which functions are built.
set -euo pipefail

say() { printf 'setup: %s\n' "$*" >&2; }
fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}
# Runs as root, if that needs no password.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        sudo -n "$@"
    else
        return 1
    fi
}
apt_install() {
    command -v apt-get >/dev/null || return 1
    say "installing $* with apt-get"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" >&2 && return
    as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q >&2 &&
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" >&2
}

# rustup puts cargo here; a fresh shell may not know it yet
[ -d "${CARGO_HOME:-$HOME/.cargo}/bin" ] && PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"

wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$(dirname "$0")/../Cargo.toml")
command -v cargo >/dev/null && command -v rustc >/dev/null ||
    fail "no Rust toolchain: cargo is not on the PATH: install it with https://rustup.rs, then run make again"
have=$(rustc --version | cut -d ' ' -f 2 | cut -d - -f 1)
[ "$(printf '%s\n%s\n' "$wanted" "$have" | sort -V | head -n 1)" = "$wanted" ] ||
    fail "Rust $have is too old: bus builds with $wanted or newer: run 'rustup update stable'"

if ! command -v cc >/dev/null && ! command -v gcc >/dev/null && ! command -v clang >/dev/null; then
    apt_install gcc libc6-dev || fail "no C compiler: ring and zstd are built with one: install gcc or clang, then run make again"
fi

sysroot=$(rustc --print sysroot)
if [ -d "$sysroot/lib/rustlib/wasm32-wasip2" ]; then
    exit 0
fi
if command -v rustup >/dev/null; then
    say "adding the Rust target wasm32-wasip2"
    rustup target add wasm32-wasip2 >&2 && exit 0
    say "rustup could not fetch it"
fi
# Debian's packages stand in: guest-examples/build.sh builds with them where the target is missing.
packages=(rustc-web cargo-web rust-web-src lld wasi-libc)
if command -v dpkg >/dev/null && dpkg -s "${packages[@]}" >/dev/null 2>&1; then
    exit 0
fi
apt_install "${packages[@]}" && exit 0
fail "functions cannot be built: the Rust target wasm32-wasip2 is missing, and neither rustup nor apt-get could bring it:" \
    "run 'rustup target add wasm32-wasip2' where there is a network, then run make again"
