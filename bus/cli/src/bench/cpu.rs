//! CPU time and memory, as the kernel counts them.

use std::fs;

/// Ticks of `/proc/PID/stat` a second: USER_HZ, which is 100 on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU seconds that this process, and the broker's where it is known, have used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cpu {
    broker: Option<u32>,
    at_start: f64,
}

impl Cpu {
    pub(super) fn start(broker: Option<u32>) -> Self {
        Self { broker, at_start: used(broker) }
    }

    /// Seconds used since the start.
    pub(super) fn seconds(&self) -> f64 {
        used(self.broker) - self.at_start
    }
}

fn used(broker: Option<u32>) -> f64 {
    let own = of("self").unwrap_or_default();
    own + broker.and_then(|pid| of(&pid.to_string())).unwrap_or_default()
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
pub(super) fn peak_resident_mib(process: u32) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok().map(|kib| kib / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_line_is_read_whatever_the_programs_name() {
        let stat = "1 (a b) c) S 0 1 1 0 -1 4194560 1 2 3 4 250 50 7 8 20 0 1 0 5";
        assert_eq!(parse(stat), Some(3.0));
        assert!(of("self").is_some());
        assert!(peak_resident_mib(std::process::id()).unwrap() > 1.0);
    }
}
