# make demo   sets up what is missing, builds, and shows the product doing its main job
# make test   sets up what is missing, and passes the tests
CARGO_TARGET_DIR ?= $(CURDIR)/target
export CARGO_TARGET_DIR
export PATH := $(HOME)/.cargo/bin:$(PATH)
# Where the example functions lie once built; the demo and the tests take them from here.
export BUS_COMPONENTS ?= $(CURDIR)/guest-examples/target/components
BUS := $(CARGO_TARGET_DIR)/release/bus
FUZZ_SECONDS ?= 60
SECONDS ?= 10
SEEDS ?= 10000
# What `make test` gives 20 seconds.
CHAOS_SECONDS ?= 180
KILLS ?= 50
# Partitions led by each of three nodes, and what a node misses while it is away.
PARTITIONS ?= 1000
MIB ?= 2048
# An example of the test kit, with brokers in processes of their own.
MEASURE := BUS_BINARY=$(BUS) cargo run --release -p bus-testkit --no-default-features --example

.PHONY: demo test bench bench-failover bench-cluster chaos fuzz sim guests release setup fix

demo: guests release
	$(BUS) demo

test: guests
	cargo build --workspace --bins
	cargo test --workspace

# The figures of the README, each beside the machine's own limit, against a broker of their own.
bench: guests release
	BUS=$(BUS) BENCH_SECONDS=$(SECONDS) tests/bench.sh

# How long producers wait for a new leader: kills, then graceful stops.
bench-failover: release
	$(MEASURE) failover -- $(KILLS)

# All that is measured with three nodes: the above, many partitions, and a node that catches up.
bench-cluster: bench-failover
	$(MEASURE) scale -- $(PARTITIONS)
	$(MEASURE) catch-up -- $(MIB)

# Random faults under load, and the same with a new disk at each kill; one after the other. CHAOS_SEED=N runs one again.
chaos: release
	BUS_BINARY=$(BUS) CHAOS_SECONDS=$(CHAOS_SECONDS) cargo test --release -p bus-tests --test chaos -- --nocapture --test-threads 1

# Mutated frames, requests and batches into every decoder that meets untrusted bytes.
fuzz: setup
	FUZZ_SECONDS=$(FUZZ_SECONDS) cargo test --release -p bus-tests --test fuzz -- --nocapture

# Replication, controller and metadata under faults, seed by seed, on all cores; SEED says where to begin.
sim: setup
	SEEDS=$(SEEDS) cargo test --release -p bus-simulation --test seeds fresh -- --nocapture

guests: setup
	env -u CARGO_TARGET_DIR -u RUSTFLAGS guest-examples/build.sh --quiet

release: setup
	cargo build --release -p bus

setup:
	@tests/setup.sh

fix:
	cargo fmt
	cd guest-examples && cargo fmt
	cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged
