//! What a component is: which of the four interfaces it exports, and whether the host has what it imports.

use bus_protocol::{Attachment, BlobId, FunctionSpec};
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, InstancePre};

use crate::bindings::exports::bus::function as exports;
use crate::engine::Engine;
use crate::instance::Context;

/// What a function does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It stands on a topic's way in.
    Transform,
    /// It reads topics and emits to others.
    Consumer,
}

/// How records cross the boundary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    /// As a list of records.
    Typed,
    /// As one list of bytes.
    Flat,
}

impl Interface {
    /// `typed` or `flat`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Typed => "typed",
            Self::Flat => "flat",
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Transform => "transform",
            Self::Consumer => "consumer",
        })
    }
}

impl std::fmt::Display for Interface {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A component that can be deployed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModuleInfo {
    /// What it does.
    pub kind: Kind,
    /// How records cross.
    pub interface: Interface,
    /// Its content address.
    pub blob: BlobId,
}

impl ModuleInfo {
    /// Checks that `spec` puts the component where a component of its kind belongs.
    pub fn check(&self, spec: &FunctionSpec) -> Result<(), InvalidModule> {
        match (self.kind, &spec.attachment) {
            (Kind::Transform, Attachment::Transform { .. })
            | (Kind::Consumer, Attachment::Consumer { .. }) => Ok(()),
            (Kind::Transform, _) => Err(InvalidModule::Misplaced {
                kind: self.kind,
                what_to_do: "deploy it with --transform TOPIC",
            }),
            (Kind::Consumer, _) => Err(InvalidModule::Misplaced {
                kind: self.kind,
                what_to_do: "deploy it with --consume TOPIC",
            }),
        }
    }
}

/// Why bytes cannot be deployed as a function. Each message says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidModule {
    /// Not WebAssembly at all.
    #[error(
        "this is not WebAssembly: the file does not start with \\0asm; give the .wasm file that the build made"
    )]
    NotWasm,
    /// A core module.
    #[error(
        "this is a core WebAssembly module, not a component: build with --target wasm32-wasip2, or make a component of it with `wasm-tools component new`"
    )]
    CoreModule,
    /// WebAssembly that does not validate.
    #[error("this component is not valid: {0}")]
    Malformed(String),
    /// It imports what functions do not have.
    #[error("this component imports {import}, which functions do not have{hint}")]
    MissingImport {
        /// The import's full name.
        import: String,
        /// What is offered instead, or nothing.
        hint: &'static str,
    },
    /// It exports no interface of ours.
    #[error(
        "this component exports neither a transform nor a consumer: it must export one of bus:function/transform, transform-flat, consumer and consumer-flat, all @0.1.0"
    )]
    NoInterface,
    /// It exports more than one.
    #[error(
        "this component exports {first} and {second}: it must export exactly one, so make two components of it"
    )]
    TwoInterfaces {
        /// One.
        first: &'static str,
        /// Another.
        second: &'static str,
    },
    /// It exports an interface of ours with other types.
    #[error("this component's {interface} is not that of wit/function.wit: {why}")]
    WrongType {
        /// The interface.
        interface: &'static str,
        /// Which item.
        why: String,
    },
    /// It cannot be started.
    #[error("this component cannot be started: {0}")]
    Start(String),
    /// A transform deployed as a consumer, or the other way round.
    #[error("this component is a {kind}: {what_to_do}")]
    Misplaced {
        /// What it is.
        kind: Kind,
        /// What to do.
        what_to_do: &'static str,
    },
}

/// Where the export of each interface is found.
pub(crate) enum Entry {
    TransformTyped(exports::transform::GuestIndices),
    TransformFlat(exports::transform_flat::GuestIndices),
    ConsumerTyped(exports::consumer::GuestIndices),
    ConsumerFlat(exports::consumer_flat::GuestIndices),
}

/// A compiled component whose imports are there and whose export is known.
pub(crate) struct Loaded {
    pub(crate) pre: InstancePre<Context>,
    pub(crate) entry: Entry,
}

const INTERFACES: [&str; 4] = [
    "bus:function/transform@0.1.0",
    "bus:function/transform-flat@0.1.0",
    "bus:function/consumer@0.1.0",
    "bus:function/consumer-flat@0.1.0",
];

impl Loaded {
    /// Compiles `bytes` (or takes them from the compile cache) and checks imports and exports.
    pub(crate) fn new(engine: &Engine, bytes: &[u8]) -> Result<Self, InvalidModule> {
        check_preamble(bytes)?;
        let component = Component::from_binary(&engine.wasm, bytes)
            .map_err(|error| InvalidModule::Malformed(one_line(&error)))?;
        check_imports(engine, &component)?;
        let interface = find_interface(engine, &component)?;
        let pre = engine
            .linker
            .instantiate_pre(&component)
            .map_err(|error| InvalidModule::Malformed(one_line(&error)))?;
        let refuse = |error: wasmtime::Error| InvalidModule::WrongType { interface, why: one_line(&error) };
        let entry = match interface {
            "bus:function/transform@0.1.0" => {
                Entry::TransformTyped(exports::transform::GuestIndices::new(&pre).map_err(refuse)?)
            }
            "bus:function/transform-flat@0.1.0" => {
                Entry::TransformFlat(exports::transform_flat::GuestIndices::new(&pre).map_err(refuse)?)
            }
            "bus:function/consumer@0.1.0" => {
                Entry::ConsumerTyped(exports::consumer::GuestIndices::new(&pre).map_err(refuse)?)
            }
            _ => Entry::ConsumerFlat(exports::consumer_flat::GuestIndices::new(&pre).map_err(refuse)?),
        };
        Ok(Self { pre, entry })
    }

    pub(crate) fn kind(&self) -> Kind {
        match self.entry {
            Entry::TransformTyped(_) | Entry::TransformFlat(_) => Kind::Transform,
            Entry::ConsumerTyped(_) | Entry::ConsumerFlat(_) => Kind::Consumer,
        }
    }

    pub(crate) fn interface(&self) -> Interface {
        match self.entry {
            Entry::TransformTyped(_) | Entry::ConsumerTyped(_) => Interface::Typed,
            Entry::TransformFlat(_) | Entry::ConsumerFlat(_) => Interface::Flat,
        }
    }
}

fn check_preamble(bytes: &[u8]) -> Result<(), InvalidModule> {
    // "\0asm", then a version and a layer: 1, 0 for core modules, 13, 1 for components.
    let Some(layer) = bytes.strip_prefix(b"\0asm") else { return Err(InvalidModule::NotWasm) };
    match layer.get(..4) {
        Some([_, _, 0, 0]) => Err(InvalidModule::CoreModule),
        Some([_, _, 1, 0]) => Ok(()),
        _ => {
            Err(InvalidModule::Malformed("its preamble is cut short, or of a layer that is not known".into()))
        }
    }
}

fn check_imports(engine: &Engine, component: &Component) -> Result<(), InvalidModule> {
    for (name, import) in component.component_type().imports(&engine.wasm) {
        let ComponentItem::ComponentInstance(instance) = import.ty else {
            return Err(missing(name.to_owned()));
        };
        // Names are looked up as the linker does it: WASI 0.2.x of a later patch is satisfied by ours.
        if instance.exports(&engine.wasm).len() == 0 || only_types(engine, &instance) {
            continue;
        }
        if !is_offered(name) {
            return Err(missing(name.to_owned()));
        }
    }
    // What is left is a function that the interface has not, or with another type.
    match engine.linker.instantiate_pre(component) {
        Ok(_) => Ok(()),
        Err(error) => Err(missing(one_line(&error))),
    }
}

fn only_types(engine: &Engine, instance: &wasmtime::component::types::ComponentInstance) -> bool {
    instance.exports(&engine.wasm).all(|(_, item)| matches!(item.ty, ComponentItem::Type(_)))
}

fn missing(import: String) -> InvalidModule {
    let hint = if import.starts_with("wasi:sockets") || import.starts_with("wasi:http") {
        ": there is no network inside a function"
    } else {
        ""
    };
    InvalidModule::MissingImport { import, hint }
}

/// Whether the linker has an instance of that name, or of a compatible version of it.
fn is_offered(import: &str) -> bool {
    const OFFERED: [&str; 20] = [
        "bus:function/log@0.1",
        "bus:function/config@0.1",
        "wasi:clocks/wall-clock@0.2",
        "wasi:clocks/monotonic-clock@0.2",
        "wasi:random/random@0.2",
        "wasi:random/insecure@0.2",
        "wasi:random/insecure-seed@0.2",
        "wasi:io/poll@0.2",
        "wasi:io/streams@0.2",
        "wasi:io/error@0.2",
        "wasi:filesystem/preopens@0.2",
        "wasi:filesystem/types@0.2",
        "wasi:cli/exit@0.2",
        "wasi:cli/environment@0.2",
        "wasi:cli/stdin@0.2",
        "wasi:cli/stdout@0.2",
        "wasi:cli/stderr@0.2",
        "wasi:cli/terminal-input@0.2",
        "wasi:cli/terminal-output@0.2",
        "wasi:cli/terminal-std",
    ];
    OFFERED.iter().any(|offered| {
        import.strip_prefix(offered).is_some_and(|rest| offered.ends_with("std") || rest.starts_with('.'))
    })
}

fn find_interface(engine: &Engine, component: &Component) -> Result<&'static str, InvalidModule> {
    let mut found = None;
    for (name, _) in component.component_type().exports(&engine.wasm) {
        let Some(interface) = INTERFACES.iter().find(|interface| **interface == name) else { continue };
        if let Some(first) = found {
            return Err(InvalidModule::TwoInterfaces { first, second: interface });
        }
        found = Some(*interface);
    }
    found.ok_or(InvalidModule::NoInterface)
}

pub(crate) fn one_line(error: &wasmtime::Error) -> String {
    let text = format!("{error:#}").replace('\n', " ");
    crate::failure::cut(&text, 600).to_owned()
}
