//! How a command that did not succeed ends: one line on stderr, and an exit code.

use std::fmt;
use std::io;
use std::process::ExitCode;

/// The command line asks for something that makes no sense: exit code 2.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

/// Ctrl-C, or SIGTERM: exit code 130.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Usage {}
impl std::error::Error for Interrupted {}

/// A [`Usage`] error.
pub(crate) fn usage(message: impl Into<String>) -> anyhow::Error {
    Usage(message.into()).into()
}

/// Says what went wrong, and picks the exit code. Whoever closed our stdout (`bus consume | head`) has what it
/// wanted: that ends quietly, and well.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if error.is::<Interrupted>() {
        return ExitCode::from(130);
    }
    if is_broken_pipe(error) {
        return ExitCode::SUCCESS;
    }
    message(&format!("error: {}", line(error)));
    ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// An error and its causes on one line.
pub(crate) fn line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        // thiserror's sources are often part of their parent's sentence already.
        if !text.contains(&cause) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&cause);
        }
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A line for the person at the terminal. A stderr that is gone is not worth failing for.
pub(crate) fn message(text: &str) {
    use io::Write as _;
    let _ = writeln!(io::stderr().lock(), "{text}");
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn a_failure_is_one_line_and_says_nothing_twice() {
        let error =
            Err::<(), _>(anyhow::anyhow!("no\nroute")).context("cannot reach a: no\nroute").unwrap_err();
        assert_eq!(line(&error), "cannot reach a: no route");
        let error = Err::<(), _>(anyhow::anyhow!("denied")).context("data").unwrap_err();
        assert_eq!(line(&error), "data: denied");
    }

    #[test]
    fn a_closed_stdout_is_no_failure() {
        let error = anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe)).context("stdout");
        assert!(is_broken_pipe(&error));
        assert!(!is_broken_pipe(&anyhow::anyhow!("x")));
    }
}
