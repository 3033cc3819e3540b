//! Ctrl-C and SIGTERM.

use std::future::Future;
use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::failure::Interrupted;

/// Whether the user wants the command to end. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Interrupt(watch::Receiver<bool>);

impl Interrupt {
    /// Listens for SIGINT and SIGTERM: the first raises the first value, the second the other. Needs a runtime.
    pub(crate) fn listen() -> io::Result<(Self, Self)> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let (asked, ask) = watch::channel(false);
        let (insisted, insist) = watch::channel(false);
        tokio::spawn(async move {
            for raise in [asked, insisted] {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                raise.send_replace(true);
                // Kept, so that receivers never see a closed channel.
                tokio::spawn(async move { raise.closed().await });
            }
        });
        Ok((Self(ask), Self(insist)))
    }

    /// Returns once the user wants the command to end. Safe to cancel.
    pub(crate) async fn wait(&self) {
        let mut raised = self.0.clone();
        if raised.wait_for(|raised| *raised).await.is_err() {
            // No signal can come any more.
            std::future::pending::<()>().await;
        }
    }

    /// Whether it was raised.
    pub(crate) fn is_raised(&self) -> bool {
        *self.0.borrow()
    }

    /// The work's result, or [`Interrupted`] if that comes first; the work is dropped then.
    pub(crate) async fn or<T>(&self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        tokio::select! {
            result = work => result,
            () = self.wait() => Err(Interrupted.into()),
        }
    }
}
