//! The tasks that a broker cannot be without.

use std::future::Future;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

/// Owns them. Each runs until the broker stops; one that ends before, whether it returns or panics, is a failure of the
/// whole broker. Dropping it ends them all.
pub(crate) struct Tasks {
    running: JoinSet<()>,
    stop: watch::Receiver<bool>,
    lost: watch::Sender<Option<&'static str>>,
}

/// Held by a task while it runs.
struct Running {
    name: &'static str,
    stop: watch::Receiver<bool>,
    lost: watch::Sender<Option<&'static str>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if !*self.stop.borrow() {
            self.lost.send_replace(Some(self.name));
        }
    }
}

impl Tasks {
    /// None yet; they may end once `stop` shows `true`.
    pub(crate) fn new(stop: watch::Receiver<bool>) -> Self {
        Self { running: JoinSet::new(), stop, lost: watch::Sender::default() }
    }

    /// Runs a task; it is called by `name`.
    pub(crate) fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let running = Running { name, stop: self.stop.clone(), lost: self.lost.clone() };
        self.running.spawn(async move {
            let _running = running;
            task.await;
        });
    }

    /// Resolves, with its name, when one has ended too early.
    pub(crate) async fn lost(&self) -> &'static str {
        let mut lost = self.lost.subscribe();
        let name = lost.wait_for(Option::is_some).await.ok().and_then(|name| *name);
        // The sender is here.
        name.unwrap_or_else(|| unreachable!("it was waited for"))
    }

    /// Waits for all of them to end, which they were told to; whether they did in time.
    pub(crate) async fn ended(&mut self, within: Duration) -> bool {
        let ended = async { while self.running.join_next().await.is_some() {} };
        tokio::time::timeout(within, ended).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_that_ends_too_early_is_lost() {
        let (stop, stopped) = watch::channel(false);
        let mut until_stopped = stopped.clone();
        let mut tasks = Tasks::new(stopped.clone());
        tasks.spawn("reconciler", async move { drop(until_stopped.wait_for(|stop| *stop).await) });
        tasks.spawn("server", async { panic!("as a bug does it") });
        assert_eq!(tasks.lost().await, "server");
        stop.send_replace(true);
        assert!(tasks.ended(Duration::from_secs(10)).await);

        let mut tasks = Tasks::new(stopped);
        tasks.spawn("server", async {});
        assert!(tasks.ended(Duration::from_secs(10)).await);
        assert!(tokio::time::timeout(Duration::ZERO, tasks.lost()).await.is_err(), "it was to end");
    }
}
