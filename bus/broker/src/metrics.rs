//! What a broker counts, in Prometheus' terms.
//!
//! The recorder is the broker's own, not the process's: a test runs several brokers in one process.

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

static METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

/// Handles of everything that is counted on a hot path, and the means to make the rest at a scrape.
pub(crate) struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    pub(crate) produced_batches: Counter,
    pub(crate) produced_records: Counter,
    pub(crate) produced_bytes: Counter,
    pub(crate) refused_batches: Counter,
    pub(crate) produce_seconds: Histogram,
    pub(crate) fetched_bytes: Counter,
    pub(crate) replicated_bytes: Counter,
    pub(crate) replicated_pushes: Counter,
    /// Replicas whose storage failed, proved damaged or could not be opened, each loss once; and those that were emptied
    /// to be fetched anew.
    pub(crate) lost_replicas: Counter,
    pub(crate) refetched_replicas: Counter,
    pub(crate) requests: Counter,
    pub(crate) connections: Gauge,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let buckets =
            [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0];
        let builder = PrometheusBuilder::new();
        // The buckets are a constant: only an empty list is refused.
        let builder = builder
            .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &buckets)
            .unwrap_or_else(|error| unreachable!("constant buckets: {error}"));
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        let counter = |name: &'static str| recorder.register_counter(&Key::from_static_name(name), &METADATA);
        Self {
            produced_batches: counter("bus_produced_batches_total"),
            produced_records: counter("bus_produced_records_total"),
            produced_bytes: counter("bus_produced_bytes_total"),
            refused_batches: counter("bus_refused_batches_total"),
            produce_seconds: recorder
                .register_histogram(&Key::from_static_name("bus_produce_seconds"), &METADATA),
            fetched_bytes: counter("bus_fetched_bytes_total"),
            replicated_bytes: counter("bus_replicated_bytes_total"),
            replicated_pushes: counter("bus_replicated_pushes_total"),
            lost_replicas: counter("bus_lost_replicas_total"),
            refetched_replicas: counter("bus_refetched_replicas_total"),
            requests: counter("bus_requests_total"),
            connections: recorder.register_gauge(&Key::from_static_name("bus_connections"), &METADATA),
            recorder,
            handle,
        }
    }

    /// Sets a gauge that is only known when asked for.
    pub(crate) fn set(&self, name: &'static str, labels: &[(&'static str, String)], value: f64) {
        let labels: Vec<Label> = labels.iter().map(|(key, value)| Label::new(*key, value.clone())).collect();
        self.recorder.register_gauge(&Key::from_parts(name, labels), &METADATA).set(value);
    }

    /// Everything, in the text format.
    pub(crate) fn render(&self) -> String {
        self.handle.run_upkeep();
        self.handle.render()
    }
}
