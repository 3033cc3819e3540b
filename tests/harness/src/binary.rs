//! Where the build left what the tests run.

use std::path::{Path, PathBuf};
use std::process::Command;

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

/// Builds the Rust project of one function, as its author would, into `target`, and answers where its component lies.
pub fn build_function(project: &Path, target: &Path) -> anyhow::Result<PathBuf> {
    let name = project.file_name().and_then(|name| name.to_str()).context("a project's folder has a name")?;
    let mut build = match has_target()? {
        true => Command::new("cargo"),
        false => debian(&sysroot()?)?,
    };
    build.args(["build", "--quiet", "--release", "--target", "wasm32-wasip2", "--target-dir"]).arg(target);
    build.current_dir(project);
    // What cargo tells the tests that it runs is not for the one that they run.
    for variable in ["CARGO_TARGET_DIR", "CARGO_ENCODED_RUSTFLAGS", "RUSTUP_TOOLCHAIN"] {
        build.env_remove(variable);
    }
    ensure!(build.status()?.success(), "{} does not build", project.display());
    Ok(target.join(format!("wasm32-wasip2/release/{}.wasm", name.replace('-', "_"))))
}

fn rustc(arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("rustc").args(arguments).output().context("cannot run rustc")?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn sysroot() -> anyhow::Result<PathBuf> {
    rustc(&["--print", "sysroot"]).map(PathBuf::from)
}

fn has_target() -> anyhow::Result<bool> {
    Ok(sysroot()?.join("lib/rustlib/wasm32-wasip2/lib").exists())
}

/// Debian's compiler and library sources, with the linker of the toolchain: what `guest-examples/build.sh` falls
/// back to as well.
fn debian(sysroot: &Path) -> anyhow::Result<Command> {
    let about = rustc(&["-vV"])?;
    let host = about.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names its host")?;
    let linkers = sysroot.join("lib/rustlib").join(host).join("bin");
    let path = std::env::var("PATH").unwrap_or_default();
    let mut build = Command::new("/usr/bin/cargo");
    build
        .arg("-Zbuild-std=std,panic_abort")
        .env("PATH", format!("{}:{path}", linkers.display()))
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTC", "/usr/bin/rustc")
        .env("RUSTFLAGS", "-L native=/usr/lib/wasm32-wasi");
    Ok(build)
}
