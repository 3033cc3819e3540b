//! What the author of a function writes against.
//!
//! ```text
//!   broker ── one list<u8> ──> component: each record is a view into it (Record<'_>)
//!                                your function
//!   broker <── unchanged, or one list<u8> ── what changed is written, what did not is copied as it lies
//! ```
//!
//! A **transform** stands on a topic's way in. It returns the record, changed or not, `None` to drop it, or a
//! [`Reject`], which refuses the producer's batch with a reason:
//!
//! ```
//! use bus_guest::{Record, Reject};
//!
//! #[bus_guest::transform]
//! fn shout(mut record: Record) -> Result<Option<Record>, Reject> {
//!     let Some(text) = record.text() else { return Err(Reject::new("the value is not text")) };
//!     let loud = text.to_uppercase();
//!     record.set_value(loud);
//!     Ok(Some(record))
//! }
//! ```
//!
//! A **consumer** reads committed records and emits to other topics:
//!
//! ```
//! use bus_guest::{Batch, Context, Error};
//!
//! #[bus_guest::consumer]
//! fn copy(batch: Batch, context: &mut Context) -> Result<(), Error> {
//!     for record in batch {
//!         context.emit("copies", record.key(), record.value())?;
//!     }
//!     Ok(())
//! }
//! ```
//!
//! Functions are deterministic: clocks tell the batch's time, random numbers follow from function, partition and
//! offset, and there are no files, no network and no environment. What a function keeps in statics lasts as long
//! as its instance, which may end at any call. Settings come from [`config()`], and [`log`] and stdout end in
//! the function's log.
//!
//! Off Wasm the attributes leave the function as it is, so that unit tests can call it; [`testing`] runs it on
//! records. Not here: state, timers, outbound HTTP.

mod batch;
mod codec;
mod config;
mod context;
mod error;
pub mod log;
mod record;
mod run;
pub mod testing;

/// Generated bindings, for the attribute macros.
#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated")]
pub mod bindings {
    pub mod transform {
        wit_bindgen::generate!({
            path: "../../wit",
            world: "transforming-flat",
            pub_export_macro: true,
            export_macro_name: "export_transform",
            default_bindings_module: "bus_guest::bindings::transform",
        });
        pub use exports::bus::function::transform_flat::{Guest, Outcome};
    }
    pub mod consumer {
        wit_bindgen::generate!({
            path: "../../wit",
            world: "consuming-flat",
            pub_export_macro: true,
            export_macro_name: "export_consumer",
            default_bindings_module: "bus_guest::bindings::consumer",
        });
        pub use exports::bus::function::consumer_flat::{Emissions, Guest};
    }
}

pub use batch::{Batch, Records};
pub use bus_guest_macros::{consumer, transform};
pub use config::config;
pub use context::{Context, Field};
pub use error::{Error, Reject};
pub use record::{Headers, Record};

#[doc(hidden)]
pub use run::{consume, transform as transform_records};

/// Makes the function `$name` the component's transform.
#[doc(hidden)]
#[macro_export]
macro_rules! __transform {
    ($name:ident) => {
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            struct Component;
            impl $crate::bindings::transform::Guest for Component {
                fn transform(
                    topic: ::std::string::String,
                    partition: u32,
                    base_offset: i64,
                    base_timestamp: i64,
                    records: ::std::vec::Vec<u8>,
                ) -> $crate::bindings::transform::Outcome {
                    $crate::transform_records(&topic, partition, base_offset, base_timestamp, &records, $name)
                        .into()
                }
            }
            $crate::bindings::transform::export_transform!(Component with_types_in $crate::bindings::transform);
        };
    };
}

/// Makes the function `$name` the component's consumer.
#[doc(hidden)]
#[macro_export]
macro_rules! __consumer {
    ($name:ident) => {
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            struct Component;
            impl $crate::bindings::consumer::Guest for Component {
                fn consume(
                    topic: ::std::string::String,
                    partition: u32,
                    base_offset: i64,
                    base_timestamp: i64,
                    records: ::std::vec::Vec<u8>,
                ) -> ::std::result::Result<$crate::bindings::consumer::Emissions, ::std::string::String>
                {
                    $crate::consume(&topic, partition, base_offset, base_timestamp, &records, $name)
                        .map(::std::convert::Into::into)
                }
            }
    $crate::bindings::consumer::export_consumer!(Component with_types_in $crate::bindings::consumer);
        };
    };
}
