//! CPU time and memory, as the kernel counts them.

use std::fs;
use std::str::FromStr;

/// Ticks of `/proc/PID/stat` a second: USER_HZ, which is 100 on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// Process ids of brokers, as `pidof` prints them or with commas; each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pids(Vec<u32>);

impl FromStr for Pids {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let numbers = text.split([',', ' ']).filter(|number| !number.is_empty()).map(str::parse);
        let mut pids = numbers.collect::<Result<Vec<u32>, _>>().map_err(|_| "write PID,PID,...")?;
        pids.sort_unstable();
        pids.dedup();
        if pids.is_empty() { Err("no such process") } else { Ok(Self(pids)) }
    }
}

impl Pids {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The most that any of them ever held in memory, in MiB.
    pub(super) fn peak_resident_mib(&self) -> Option<f64> {
        self.0.iter().copied().filter_map(peak_resident_mib).max_by(f64::total_cmp)
    }
}

/// CPU seconds that this process, and the brokers' where they are known, have used.
#[derive(Clone, Debug)]
pub(super) struct Cpu {
    brokers: Pids,
    at_start: f64,
}

impl Cpu {
    pub(super) fn start(brokers: Option<&Pids>) -> Self {
        let brokers = brokers.cloned().unwrap_or_default();
        let at_start = used(&brokers);
        Self { brokers, at_start }
    }

    /// Seconds used since the start.
    pub(super) fn seconds(&self) -> f64 {
        used(&self.brokers) - self.at_start
    }
}

fn used(brokers: &Pids) -> f64 {
    let own = of("self").unwrap_or_default();
    own + brokers.0.iter().filter_map(|pid| of(&pid.to_string())).sum::<f64>()
}

fn of(process: &str) -> Option<f64> {
    parse(&fs::read_to_string(format!("/proc/{process}/stat")).ok()?)
}

/// User and system time. The second field is the program's name, which may hold spaces and brackets.
fn parse(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let user: u64 = fields.nth(11)?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) as f64 / TICKS_PER_SECOND)
}

/// The most that a process ever held in memory, in MiB.
fn peak_resident_mib(process: u32) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok().map(|kib| kib / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pids_as_pidof_prints_them() {
        assert_eq!("12 7,12".parse(), Ok(Pids(vec![7, 12])));
        assert!("".parse::<Pids>().is_err() && "bus".parse::<Pids>().is_err());
        let own = Pids(vec![std::process::id()]);
        assert!(used(&own) >= used(&Pids::default()));
        assert!(own.peak_resident_mib().unwrap() > 1.0);
    }

    #[test]
    fn the_kernels_line_is_read_whatever_the_programs_name() {
        let stat = "1 (a b) c) S 0 1 1 0 -1 4194560 1 2 3 4 250 50 7 8 20 0 1 0 5";
        assert_eq!(parse(stat), Some(3.0));
        assert!(of("self").is_some());
        assert!(peak_resident_mib(std::process::id()).unwrap() > 1.0);
    }
}
