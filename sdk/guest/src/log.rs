//! The function's log, which `bus function logs` shows.
//!
//! ```
//! bus_guest::log::info!("{} records", 3);
//! ```

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Something failed.
    Error,
    /// Something is odd.
    Warn,
    /// Good to know.
    Info,
    /// For who looks for a fault.
    Debug,
    /// Everything.
    Trace,
}

/// Writes a line to the log. The macros of this module are shorter.
pub fn write(level: Level, message: &str) {
    #[cfg(target_arch = "wasm32")]
    {
        use crate::bindings::transform::bus::function::log;
        let level = match level {
            Level::Error => log::Level::Error,
            Level::Warn => log::Level::Warn,
            Level::Info => log::Level::Info,
            Level::Debug => log::Level::Debug,
            Level::Trace => log::Level::Trace,
        };
        log::write(level, message);
    }
    #[cfg(not(target_arch = "wasm32"))]
    {
        use std::io::Write;
        // A test's stderr may be closed; a log line is not worth a failure.
        let _ = writeln!(std::io::stderr(), "{level:?}: {message}");
    }
}

/// Logs a formatted line.
#[doc(hidden)]
#[macro_export]
macro_rules! __log {
    ($level:ident, $($message:tt)+) => {
        $crate::log::write($crate::log::Level::$level, &::std::format!($($message)+))
    };
}
/// Logs a formatted line as an error.
#[doc(hidden)]
#[macro_export]
macro_rules! __log_error { ($($m:tt)+) => { $crate::__log!(Error, $($m)+) }; }
/// Logs a formatted line as a warning.
#[doc(hidden)]
#[macro_export]
macro_rules! __log_warn { ($($m:tt)+) => { $crate::__log!(Warn, $($m)+) }; }
/// Logs a formatted line.
#[doc(hidden)]
#[macro_export]
macro_rules! __log_info { ($($m:tt)+) => { $crate::__log!(Info, $($m)+) }; }
/// Logs a formatted line for debugging.
#[doc(hidden)]
#[macro_export]
macro_rules! __log_debug { ($($m:tt)+) => { $crate::__log!(Debug, $($m)+) }; }
/// Logs a formatted line for tracing.
#[doc(hidden)]
#[macro_export]
macro_rules! __log_trace { ($($m:tt)+) => { $crate::__log!(Trace, $($m)+) }; }

pub use crate::{
    __log_debug as debug, __log_error as error, __log_info as info, __log_trace as trace, __log_warn as warn,
};
