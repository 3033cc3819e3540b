//! What a run says.

use std::time::Duration;

use serde::Serialize;

use super::cpu::Pids;
use super::latency::Percentiles;
use super::limits::{Limits, megabytes};
use super::{Bench, What};
use crate::args::Global;
use crate::output;
use crate::units::show_count;

/// What was measured.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    pub(super) records: u64,
    pub(super) elapsed: Duration,
    /// `None` where latency says nothing.
    pub(super) latency: Option<Percentiles>,
    pub(super) cpu_seconds: f64,
    pub(super) function: Option<FunctionCost>,
}

/// What a transform that changes nothing costs.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct FunctionCost {
    /// Without the function.
    pub(super) records_per_s_without: f64,
    /// What the throughput falls by, of 1.
    pub(super) throughput_loss: f64,
    pub(super) ns_per_record_added: f64,
    /// The first record after the function was deployed, or had idled.
    pub(super) first_record_ms: f64,
    /// A record to the warm function, one at a time, at p50.
    pub(super) warm_record_ms: f64,
}

#[derive(Serialize)]
struct Row<'a> {
    what: &'a str,
    mode: &'a str,
    size: u64,
    partitions: u32,
    replicas: u32,
    producers: u32,
    acks: String,
    records: u64,
    seconds: f64,
    records_per_s: f64,
    mb_per_s: f64,
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
    p999_ms: Option<f64>,
    limit_mb_per_s: f64,
    /// Which limit that is.
    limit: &'a str,
    ratio: f64,
    quic_mb_per_s: f64,
    disk_mb_per_s: f64,
    disk_1mib_mb_per_s: f64,
    cpu_s_per_gb: f64,
    /// Whose CPU that is.
    cpu_of: &'a str,
    broker_peak_mib: Option<f64>,
    #[serde(flatten)]
    function: Option<FunctionCost>,
}

pub(super) fn print(
    global: &Global,
    args: &Bench,
    limits: &Limits,
    measured: &Measured,
) -> anyhow::Result<()> {
    let seconds = measured.elapsed.as_secs_f64().max(f64::EPSILON);
    let bytes = measured.records * args.size;
    let mb_per_s = megabytes(bytes, measured.elapsed);
    // Each byte that comes in crosses the wire, and reaches a disk, once for each replica.
    let incoming = limits.produce() / f64::from(args.replicas);
    let (limit, limit_mb_per_s) = match args.what {
        What::Consume => ("quic", limits.quic),
        _ if limits.quic <= limits.disk() => ("quic", incoming),
        _ => ("disk", incoming),
    };
    let acks = format!("{:?}", args.acks).to_lowercase();
    let row = Row {
        what: match args.what {
            What::Produce => "produce",
            What::Consume => "consume",
            What::EndToEnd => "end-to-end",
            What::Function => "function",
        },
        mode: match args.rate {
            Some(_) => "rate",
            None if args.one_at_a_time => "one-at-a-time",
            None => "full",
        },
        size: args.size,
        partitions: args.partitions,
        replicas: args.replicas,
        producers: args.producers,
        acks,
        records: measured.records,
        seconds,
        records_per_s: (measured.records as f64 / seconds).round(),
        mb_per_s,
        p50_ms: measured.latency.map(|latency| latency.p50),
        p99_ms: measured.latency.map(|latency| latency.p99),
        p999_ms: measured.latency.map(|latency| latency.p999),
        limit_mb_per_s,
        limit,
        ratio: mb_per_s / limit_mb_per_s,
        quic_mb_per_s: limits.quic,
        disk_mb_per_s: limits.disk(),
        disk_1mib_mb_per_s: limits.disk_each,
        cpu_s_per_gb: measured.cpu_seconds / (bytes as f64 / 1e9).max(f64::EPSILON),
        cpu_of: match args.broker_pid.as_ref().map(Pids::len) {
            None => "client",
            Some(1) => "client and broker",
            Some(_) => "client and brokers",
        },
        broker_peak_mib: args.broker_pid.as_ref().and_then(Pids::peak_resident_mib),
        function: measured.function,
    };
    if global.format.is_json() { output::json([row]) } else { table(&row) }
}

/// The limit in words.
fn limit(row: &Row<'_>) -> String {
    match row.replicas {
        replicas @ 2.. if row.what != "consume" => format!(
            "{:.0} MB/s: raw {} by {replicas}, as each byte takes that way {replicas} times",
            row.limit_mb_per_s, row.limit
        ),
        _ => row.limit.to_owned(),
    }
}

fn table(row: &Row<'_>) -> anyhow::Result<()> {
    let latency =
        |milliseconds: Option<f64>| milliseconds.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.3} ms"));
    let mut fields = vec![
        (
            "what",
            format!(
                "{} ({}), {} B, {} partitions, {} replicas, {} producers, acks {}",
                row.what, row.mode, row.size, row.partitions, row.replicas, row.producers, row.acks
            ),
        ),
        ("records", format!("{} in {:.1} s", show_count(row.records), row.seconds)),
        ("records/s", show_count(row.records_per_s as u64)),
        ("MB/s", format!("{:.1}", row.mb_per_s)),
        (
            "latency",
            format!(
                "p50 {}, p99 {}, p99.9 {}",
                latency(row.p50_ms),
                latency(row.p99_ms),
                latency(row.p999_ms)
            ),
        ),
        ("raw QUIC", format!("{:.0} MB/s, one stream", row.quic_mb_per_s)),
        (
            "raw disk",
            format!(
                "{:.0} MB/s ({:.0} with an fdatasync each MiB)",
                row.disk_mb_per_s, row.disk_1mib_mb_per_s
            ),
        ),
        ("ratio", format!("{:.2} of {}", row.ratio, limit(row))),
        ("CPU", format!("{:.2} s a GB ({})", row.cpu_s_per_gb, row.cpu_of)),
    ];
    if let Some(peak) = row.broker_peak_mib {
        fields.push(("broker", format!("{peak:.0} MiB resident at the most")));
    }
    if let Some(cost) = row.function {
        fields.push(("without it", format!("{} records/s", show_count(cost.records_per_s_without as u64))));
        fields.push((
            "its cost",
            format!(
                "{:.1} % of the throughput, {:.1} ns a record",
                cost.throughput_loss * 100.0,
                cost.ns_per_record_added
            ),
        ));
        fields.push((
            "first record",
            format!("{:.3} ms, {:.3} ms when warm", cost.first_record_ms, cost.warm_record_ms),
        ));
    }
    output::fields(&fields)
}
