//! What a node that does not get ready waits for: the metadata crate logs it, `bus start` shows it.

use std::convert::Infallible;
use std::fmt;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use crate::units::show_duration;

/// Where those lines come from, and what they begin with.
const TARGET: &str = "bus_metadata";
const BEGINS: &str = "this node waits ";
/// A start that takes less needs no word.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often it is said again.
const REMIND: Duration = Duration::from_secs(10);

/// For whom or what this process's node waits, as it said last.
#[derive(Clone, Debug)]
pub(crate) struct Waiting(watch::Receiver<String>);

struct Listener(watch::Sender<String>);

/// A layer that listens, and what it has heard.
pub(crate) fn listen<S: Subscriber + for<'a> LookupSpan<'a>>() -> (impl Layer<S>, Waiting) {
    let (heard, waiting) = watch::channel(String::new());
    let concerned = filter_fn(|metadata| {
        *metadata.level() == Level::INFO && metadata.is_event() && metadata.target().starts_with(TARGET)
    });
    (Listener(heard).with_filter(concerned), Waiting(waiting))
}

impl<S: Subscriber> Layer<S> for Listener {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut message = Message(String::new());
        event.record(&mut message);
        if message.0.starts_with(BEGINS) {
            self.0.send_if_modified(|last| {
                let changed = *last != message.0;
                *last = message.0;
                changed
            });
        }
    }
}

/// The text of an event.
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

impl Waiting {
    /// Says what is waited for once that takes long, again when it is something else, and every now and then how long
    /// it has been. Never returns: to be run beside the start.
    pub(crate) async fn tell(mut self) -> Infallible {
        let start = Instant::now();
        loop {
            sleep(PATIENCE).await;
            let what = self.0.borrow_and_update().clone();
            if !what.is_empty() {
                crate::failure::message(&line(&what, start.elapsed()));
            }
            match timeout(REMIND - PATIENCE, self.0.changed()).await {
                Ok(Ok(())) | Err(_) => {}
                // Nobody listens any more.
                Ok(Err(_)) => std::future::pending::<()>().await,
            }
        }
    }
}

/// What is said of a start that has taken so long.
fn line(what: &str, since: Duration) -> String {
    if since < REMIND {
        return what.to_owned();
    }
    format!("{what} ({} so far)", show_duration(since))
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[test]
    fn only_what_a_node_waits_for_is_heard() {
        let (layer, waiting) = listen();
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, || {
            let on = "10.0.0.2:9440";
            tracing::info!(target: "bus_metadata::join", "this node waits for {on} to answer");
            tracing::info!(target: "bus_metadata::join", "this node has joined the cluster");
            tracing::info!(target: "bus_log", "this node waits for its disk");
            tracing::warn!(target: "bus_metadata::join", "this node waits no more");
        });
        assert_eq!(*waiting.0.borrow(), "this node waits for 10.0.0.2:9440 to answer");
    }
    #[test]
    fn what_is_said_again_says_for_how_long() {
        assert_eq!(line("this node waits for a", PATIENCE), "this node waits for a");
        assert_eq!(
            line("this node waits for a", Duration::from_secs(34)),
            "this node waits for a (34 s so far)"
        );
    }
}
