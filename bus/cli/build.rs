//! Packs the guest SDK into the binary, so that `bus function new` makes a project that builds wherever it lies.
#![allow(clippy::print_stdout, reason = "how a build script speaks to cargo")]

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What a project needs of this repository, and where it stands there and in the project's copy.
const PARTS: [&str; 6] = [
    "sdk/guest/Cargo.toml",
    "sdk/guest/src",
    "sdk/guest/macros/Cargo.toml",
    "sdk/guest/macros/src",
    "wit",
    "LICENSE",
];

fn main() -> io::Result<()> {
    // Asked for when it runs: a script built in another checkout may be used again here.
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
        .ok_or_else(|| io::Error::other("cargo did not say where this is"))?;
    let root = Path::new(&manifest).join("../..").canonicalize()?;
    let mut files = Vec::new();
    for part in PARTS {
        println!("cargo::rerun-if-changed={}", root.join(part).display());
        collect(&root.join(part), &mut files)?;
    }
    files.sort();
    let mut code =
        String::from("/// The files of the SDK by name.\npub(super) const FILES: &[(&str, &str)] = &[\n");
    for file in files {
        let name = file.strip_prefix(&root).map_err(io::Error::other)?;
        writeln!(code, "    ({name:?}, include_str!({file:?})),").map_err(io::Error::other)?;
    }
    code.push_str("];\n");
    let manifest = root.join("Cargo.toml");
    println!("cargo::rerun-if-changed={}", manifest.display());
    code.push_str("/// The manifest that the SDK's manifests inherit from.\n");
    writeln!(code, "const WORKSPACE: &str = include_str!({manifest:?});").map_err(io::Error::other)?;
    let out = std::env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("cargo sets OUT_DIR"))?;
    fs::write(PathBuf::from(out).join("sdk.rs"), code)
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    if !path.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(path)? {
        collect(&entry?.path(), files)?;
    }
    Ok(())
}
