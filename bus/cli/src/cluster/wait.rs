//! Waiting for what the cluster does by itself once it was asked to.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

use crate::failure::{Interrupted, message};
use crate::interrupt::Interrupt;

/// How often it is looked at first; it slows down to [`SLOWEST`] over a long wait.
const FIRST: Duration = Duration::from_millis(50);
const SLOWEST: Duration = Duration::from_secs(1);
/// How long nothing may change until the user hears what holds it up.
const STUCK: Duration = Duration::from_secs(10);

/// What is not done yet.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Left {
    /// Partitions.
    pub(super) partitions: usize,
    /// Records that have not been copied yet, where it is known.
    pub(super) records: Option<u64>,
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
    /// Looks again and again until nothing is left. On Ctrl-C it says that the cluster goes on.
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
        let mut told = None;
        loop {
            let left = look().await?;
            if left.partitions == 0 {
                return Ok(());
            }
            bar.set_length(bar.length().unwrap_or_default().max(left.partitions as u64));
            bar.set_position(bar.length().unwrap_or_default().saturating_sub(left.partitions as u64));
            if let Some(records) = left.records {
                bar.set_message(format!(", {} records to copy", crate::units::show_count(records)));
            }
            let now = Some((left.partitions, left.records));
            if now != last {
                (last, since) = (now, Instant::now());
            }
            if since.elapsed() >= STUCK && left.held_up.is_some() && left.held_up != told {
                bar.suspend(|| message(left.held_up.as_deref().unwrap_or_default()));
                told.clone_from(&left.held_up);
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
}

/// Whether somebody looks at the progress.
pub(super) fn is_watched() -> bool {
    std::io::stderr().is_terminal()
}

fn bar(length: usize, done: &str) -> ProgressBar {
    if !is_watched() {
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
