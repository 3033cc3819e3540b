//! Where the build left what the tests run.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

/// The `bus` binary: `$BUS_BINARY`, or the one beside the running test.
pub fn binary() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("BUS_BINARY") {
        return Ok(path.into());
    }
    // target/PROFILE/deps/TEST-HASH
    let test = std::env::current_exe().context("where does this test run from?")?;
    let folder = test.parent().and_then(Path::parent).context("the test lies in no target folder")?;
    let binary = folder.join("bus");
    ensure!(binary.exists(), "{} does not exist: run `cargo build -p bus` first", binary.display());
    Ok(binary)
}

/// A component of guest-examples by name, as `make guests` leaves it; `$BUS_COMPONENTS` may name another folder.
pub fn components(name: &str) -> anyhow::Result<PathBuf> {
    let folder = match std::env::var_os("BUS_COMPONENTS") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guest-examples/target/components"),
    };
    let component = folder.join(format!("{name}.wasm"));
    ensure!(component.exists(), "{} does not exist: run `make guests` first", component.display());
    Ok(component)
}
