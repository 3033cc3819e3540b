//! Generated from `wit/function.wit`, for the host's side of all four interfaces at once.
#![allow(missing_docs, unreachable_pub, clippy::all, reason = "generated")]

wasmtime::component::bindgen!({
    inline: r#"
        package bus:host;
        world host {
            import bus:function/log@0.1.0;
            import bus:function/config@0.1.0;
            export bus:function/transform@0.1.0;
            export bus:function/transform-flat@0.1.0;
            export bus:function/consumer@0.1.0;
            export bus:function/consumer-flat@0.1.0;
        }
    "#,
    path: "../../wit",
    world: "bus:host/host",
    ownership: Borrowing { duplicate_if_necessary: true },
});
