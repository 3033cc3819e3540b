//! Waiting for what the cluster does by itself once it was asked to.

use std::io::IsTerminal as _;
use std::time::Duration;

use bus_protocol::NodeId;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

use crate::failure::{Interrupted, message};
use crate::interrupt::Interrupt;
use crate::output;
use crate::units::show_count;

/// How often it is looked at first; it slows down to [`SLOWEST`] over a long wait.
const FIRST: Duration = Duration::from_millis(50);
const SLOWEST: Duration = Duration::from_secs(1);
/// How often a line says how far it is, where no bar does.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// What is not done yet.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Left {
    /// Partitions.
    pub(super) partitions: usize,
    /// Records that have not been copied yet, where it is known.
    pub(super) records: Option<u64>,
    /// The brokers that have not got there yet.
    pub(super) waits_for: Vec<NodeId>,
    /// What holds it up, if that is known.
    pub(super) held_up: Option<String>,
}

/// What is waited for.
#[derive(Debug)]
pub(super) struct Wait<'a> {
    pub(super) interrupt: &'a Interrupt,
    /// What partitions do: "moved".
    pub(super) done: &'a str,
    /// How many partitions there are to do; what is left at first where that is more.
    pub(super) of: usize,
    /// How long nothing may change before it counts as failed, if it may not be for ever.
    pub(super) stuck: Option<Duration>,
}

impl Wait<'_> {
    /// Looks again and again until nothing is left; says every few seconds how far it is, and at once what newly holds
    /// it up. On Ctrl-C it says that the cluster goes on.
    pub(super) async fn until_done(
        self,
        look: impl AsyncFnMut() -> anyhow::Result<Left>,
    ) -> anyhow::Result<()> {
        let bar = bar(self.of, self.done);
        let result = self.interrupt.or(self.watch(look, &bar)).await;
        bar.finish_and_clear();
        if result.as_ref().is_err_and(|error| error.is::<Interrupted>()) {
            message("the cluster goes on with it: see `bus cluster status`");
        }
        result
    }

    async fn watch(
        &self,
        mut look: impl AsyncFnMut() -> anyhow::Result<Left>,
        bar: &ProgressBar,
    ) -> anyhow::Result<()> {
        let (mut pause, mut last, mut since) = (FIRST, None, Instant::now());
        let (mut of, mut held_up, mut said) = (self.of, None, Instant::now());
        loop {
            let left = look().await?;
            if left.partitions == 0 {
                return Ok(());
            }
            of = of.max(left.partitions);
            bar.set_length(of as u64);
            bar.set_position((of - left.partitions) as u64);
            bar.set_message(left.to_copy());
            let now = Some((left.partitions, left.records));
            if now != last {
                (last, since) = (now, Instant::now());
            }
            if left.held_up != held_up {
                let news =
                    left.held_up.as_deref().unwrap_or("all brokers concerned are up again: it goes on");
                bar.suspend(|| message(news));
                held_up.clone_from(&left.held_up);
            }
            if bar.is_hidden() && said.elapsed() >= LINE_EVERY {
                message(&self.line(of, &left));
                said = Instant::now();
            }
            if let Some(patience) = self.stuck.filter(|patience| since.elapsed() >= *patience) {
                let Left { partitions, held_up, .. } = left;
                let why = held_up.map(|why| format!(" ({why})")).unwrap_or_default();
                anyhow::bail!(
                    "{partitions} partitions were not {} within {patience:?}{why}: see `bus cluster status`",
                    self.done
                );
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 5 / 4).min(SLOWEST);
        }
    }

    /// How far it is.
    fn line(&self, of: usize, left: &Left) -> String {
        let [did, all] = [of - left.partitions, of].map(|count| show_count(count as u64));
        let waits = match &left.waits_for[..] {
            [] => String::new(),
            [node] => format!(", waits for node {node}"),
            nodes => format!(", waits for nodes {}", output::list(nodes)),
        };
        format!("{did} of {all} partitions {}{}{waits}", self.done, left.to_copy())
    }
}

impl Left {
    fn to_copy(&self) -> String {
        let records = self.records.map(|records| format!(", {} records to copy", show_count(records)));
        records.unwrap_or_default()
    }
}

fn bar(length: usize, done: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(length as u64);
    match ProgressStyle::with_template(&format!(
        "{{wide_bar}} {{human_pos}} of {{human_len}} partitions {done}{{msg}}"
    )) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_line_says_how_far_it_is() {
        let (interrupt, _) = Interrupt::listen().unwrap();
        let wait = Wait { interrupt: &interrupt, done: "moved", of: 6, stuck: None };
        let left = Left { partitions: 4, records: Some(12_345), waits_for: vec![3, 4], held_up: None };
        assert_eq!(
            wait.line(6, &left),
            "2 of 6 partitions moved, 12,345 records to copy, waits for nodes 3,4"
        );
        let left = Left { partitions: 1, ..Left::default() };
        assert_eq!(wait.line(6, &left), "5 of 6 partitions moved");
    }
}
