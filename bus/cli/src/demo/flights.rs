//! The data: every flight that left New York in January 2013, and what can be said of them without a bus.

use std::collections::BTreeMap;
use std::io::Read as _;

use anyhow::Context as _;
use bus_protocol::Timestamp;
use serde::{Deserialize, Serialize};

use crate::rfc3339;

/// See `data/README.md` for source and licence.
const CSV_GZ: &[u8] = include_bytes!("../../data/flights-2013-01.csv.gz");

/// From this many minutes on a departure is late; what the `route` function takes for granted, too.
const LATE_MINUTES: i64 = 15;

/// The whole data set as CSV text.
pub(super) fn csv() -> anyhow::Result<String> {
    let mut text = String::new();
    flate2::read::GzDecoder::new(CSV_GZ).read_to_string(&mut text).context("the data set is damaged")?;
    Ok(text)
}

/// A flight as an event. What is not known of it (a cancelled flight has no delay) is null.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Flight<'a> {
    pub(super) carrier: &'a str,
    pub(super) flight: u32,
    pub(super) tailnum: Option<&'a str>,
    pub(super) origin: &'a str,
    pub(super) dest: &'a str,
    pub(super) sched_dep_time: u32,
    pub(super) dep_delay: Option<i64>,
    pub(super) arr_delay: Option<i64>,
    pub(super) distance: u32,
}

/// What tells a flight from all others: when it was to leave, and its carrier and number, which are its record's
/// timestamp and key.
pub(super) type Id = (Timestamp, String);

/// How a flight left, as the `route` function sorts them; in the order of its topics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Departure {
    Late,
    OnTime,
    Cancelled,
}

impl Flight<'_> {
    pub(super) fn id(&self, time: Timestamp) -> Id {
        (time, format!("{}{}", self.carrier, self.flight))
    }

    pub(super) fn departure(&self) -> Departure {
        match self.dep_delay {
            None => Departure::Cancelled,
            Some(LATE_MINUTES..) => Departure::Late,
            Some(_) => Departure::OnTime,
        }
    }
}

/// A row of the CSV: when, and what.
pub(super) fn parse(row: &str) -> anyhow::Result<(Timestamp, Flight<'_>)> {
    let columns: Vec<_> = row.split(',').collect();
    let known = |column: usize| columns.get(column).copied().filter(|text| *text != "NA");
    let text = |column| known(column).with_context(|| format!("column {column} is missing: {row}"));
    let number = |column| known(column).map(str::parse::<i64>).transpose();
    let time = rfc3339::parse(text(18)?).with_context(|| format!("not a time: {row}"))?;
    let flight = Flight {
        carrier: text(9)?,
        flight: text(10)?.parse()?,
        tailnum: known(11),
        origin: text(12)?,
        dest: text(13)?,
        sched_dep_time: text(4)?.parse()?,
        dep_delay: number(5)?,
        arr_delay: number(8)?,
        distance: text(15)?.parse()?,
    };
    Ok((time, flight))
}

/// What the flights of one kind add up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sums {
    pub(super) flights: u64,
    pub(super) late: u64,
    pub(super) cancelled: u64,
    pub(super) unknown_aircraft: u64,
    /// Of those that departed.
    pub(super) delay_minutes: i64,
}

/// Sums by airport and carrier.
pub(super) type Summary = BTreeMap<(String, String), Sums>;

impl Sums {
    pub(super) fn add(&mut self, flight: &Flight<'_>) {
        self.flights += 1;
        self.unknown_aircraft += u64::from(flight.tailnum.is_none());
        match flight.dep_delay {
            None => self.cancelled += 1,
            Some(delay) => {
                self.late += u64::from(delay >= LATE_MINUTES);
                self.delay_minutes += delay;
            }
        }
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.flights += other.flights;
        self.late += other.late;
        self.cancelled += other.cancelled;
        self.unknown_aircraft += other.unknown_aircraft;
        self.delay_minutes += other.delay_minutes;
    }

    pub(super) fn mean_delay(&self) -> f64 {
        self.delay_minutes as f64 / (self.flights - self.cancelled).max(1) as f64
    }
}

/// Adds a flight to its airport's and carrier's sums.
pub(super) fn count(summary: &mut Summary, flight: &Flight<'_>) {
    summary.entry((flight.origin.to_owned(), flight.carrier.to_owned())).or_default().add(flight);
}

/// The same computation without the bus.
pub(super) fn summarize(csv: &str) -> anyhow::Result<Summary> {
    let mut summary = Summary::new();
    for row in csv.lines().skip(1) {
        count(&mut summary, &parse(row)?.1);
    }
    Ok(summary)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_is_all_there_and_in_order() {
        let csv = csv().unwrap();
        assert_eq!(csv.lines().count(), 27_005);
        let mut last = i64::MIN;
        for row in csv.lines().skip(1) {
            let (time, flight) = parse(row).unwrap();
            assert!(time >= last, "{row}");
            last = time;
            let json = serde_json::to_vec(&flight).unwrap();
            assert_eq!(serde_json::from_slice::<Flight<'_>>(&json).unwrap(), flight);
        }
        let mut all = Sums::default();
        summarize(&csv).unwrap().values().for_each(|sums| all.merge(sums));
        assert_eq!((all.flights, all.cancelled, all.unknown_aircraft), (27_004, 521, 155));
    }
}
