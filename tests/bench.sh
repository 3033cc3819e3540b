#!/usr/bin/env bash
# The figures of the README: a broker in a folder of its own, then every bench against it, a JSON object a line on stdout.
# BUS: the binary. BUS_COMPONENTS: where identity.wasm is. BENCH_SECONDS: how long each runs. BENCH_DIR: on which disk.
set -euo pipefail
bus=${BUS:-target/release/bus}
components=${BUS_COMPONENTS:-guest-examples/target/components}
seconds=${BENCH_SECONDS:-10}
folder=$(mktemp -d "${BENCH_DIR:-$PWD}/bus-bench-XXXXXX")
export BUS_TRUST_DIR=$folder/trust
pid=
cleanup() {
    [ -z "$pid" ] || { kill "$pid" && wait "$pid"; } || true
    rm -rf "$folder"
}
trap cleanup EXIT

"$bus" start --data "$folder/data" --listen 127.0.0.1:0 --http 127.0.0.1:0 >"$folder/ready" &
pid=$!
# The line comes in under a second; a broker that ends instead has said why.
for _ in $(seq 100); do
    [ -s "$folder/ready" ] && break
    kill -0 "$pid" 2>/dev/null || exit 1
    sleep 0.1
done
BUS_SERVER=$(sed -n 's/^ready: node [0-9]* at \([^,]*\),.*/\1/p' "$folder/ready")
export BUS_SERVER

bench() {
    printf '== bus bench %s\n' "$*" >&2
    "$bus" bench "$@" --seconds "$seconds" --disk-dir "$folder" --broker-pid "$pid" -o json | tee "$folder/last"
}
# What the last run reached, a tenth of it: partial load.
tenth() { sed -n 's/.*"records_per_s":\([0-9]*\).*/\1/p' "$folder/last" | awk '{ print int($1 / 10) }'; }

printf '%s, %s cores, %s\n' "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)" "$(nproc)" "$(uname -sr)" >&2
bench produce
rate=$(tenth)
bench produce --rate "$rate"
bench produce --one-at-a-time
bench produce --size 100
bench consume
bench consume --size 100
bench end-to-end --rate 10000
bench function --module "$components/identity.wasm"
bench function --module "$components/identity.wasm" --size 100
