//! `bus function new`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, ValueEnum};

use super::sdk;
use crate::failure::message;

/// Write a project that builds at once
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  bus function new redact                       # ./redact, a transform
  bus function new route --kind consumer
  cd redact && cargo build --release --target wasm32-wasip2")]
pub(crate) struct New {
    /// The project's name, and its folder's: a-z, 0-9 and '-', starting with a letter
    #[arg(value_parser = name)]
    name: String,
    /// The language that it is written in
    #[arg(long, value_enum, default_value_t = Language::Rust)]
    language: Language,
    /// What it will be: on a topic's way in, or behind topics
    #[arg(long, value_enum, default_value_t = Kind::Transform)]
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Language {
    Rust,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Sees each record before it is stored
    Transform,
    /// Reads committed records, and emits others
    Consumer,
}

const MANIFEST: &str = include_str!("../../../../sdk/guest/template/Cargo.toml.tmpl");
const README: &str = include_str!("../../../../sdk/guest/template/README.md.tmpl");
const GITIGNORE: &str = include_str!("../../../../sdk/guest/template/gitignore.tmpl");
const TRANSFORM: &str = include_str!("../../../../sdk/guest/template/src/transform.rs.tmpl");
const CONSUMER: &str = include_str!("../../../../sdk/guest/template/src/consumer.rs.tmpl");

fn name(text: &str) -> Result<String, String> {
    let first = text.starts_with(|c: char| c.is_ascii_lowercase());
    let rest = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if first && rest && text.len() <= 64 {
        Ok(text.to_owned())
    } else {
        Err("a project's name is a-z, 0-9 and '-', starts with a letter, and has at most 64 characters"
            .into())
    }
}

pub(super) fn run(args: &New) -> anyhow::Result<()> {
    let Language::Rust = args.language;
    let folder = PathBuf::from(&args.name);
    // An existing folder may hold somebody's work.
    fs::create_dir(&folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    for (file, text) in files(&args.name, args.kind) {
        write(&folder.join(file), &text)?;
    }
    message(&format!(
        "{name} is ready:\n  cd {name}\n  cargo build --release --target wasm32-wasip2\n  {deploy}",
        name = args.name,
        deploy = deploy(&args.name, args.kind)
    ));
    Ok(())
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let folder = path.parent().context("a file lies in a folder")?;
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(path, text))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn wasm(name: &str) -> String {
    format!("target/wasm32-wasip2/release/{}.wasm", name.replace('-', "_"))
}

fn deploy(name: &str, kind: Kind) -> String {
    let attachment = match kind {
        Kind::Transform => "--transform TOPIC",
        Kind::Consumer => "--consume TOPIC --output output",
    };
    format!("bus function deploy {name} {} {attachment}", wasm(name))
}

/// All files of a project by name. The SDK lies beside it, in `vendor`, a workspace of its own.
fn files(name: &str, kind: Kind) -> Vec<(String, String)> {
    let fill = |template: &str| {
        template
            .replace("{{name}}", name)
            .replace("{{sdk}}", "{ path = \"vendor/sdk/guest\" }")
            .replace("{{wasm}}", &wasm(name))
            .replace("{{deploy}}", &deploy(name, kind))
    };
    let code = match kind {
        Kind::Transform => TRANSFORM,
        Kind::Consumer => CONSUMER,
    };
    // Else cargo takes the SDK for a member of both workspaces.
    let manifest = fill(MANIFEST).replacen("[workspace]", "[workspace]\nexclude = [\"vendor\"]", 1);
    let mut files = vec![
        ("Cargo.toml".to_owned(), manifest),
        ("README.md".to_owned(), fill(README)),
        (".gitignore".to_owned(), fill(GITIGNORE)),
        ("src/lib.rs".to_owned(), fill(code)),
        ("vendor/Cargo.toml".to_owned(), sdk::workspace()),
    ];
    files.extend(sdk::FILES.iter().map(|(file, text)| (format!("vendor/{file}"), (*text).to_owned())));
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_is_whole_and_nothing_is_left_to_fill_in() {
        for kind in [Kind::Transform, Kind::Consumer] {
            let files = files("my-function", kind);
            for (file, text) in &files {
                assert!(file.starts_with("vendor/") || !text.contains("{{"), "{file}: {text}");
            }
            let text = |name: &str| &files.iter().find(|(file, _)| file == name).unwrap().1;
            assert!(text("Cargo.toml").contains("exclude = [\"vendor\"]"));
            assert!(text("vendor/Cargo.toml").contains("members = [\"sdk/guest\", \"sdk/guest/macros\"]"));
            assert!(!text("vendor/wit/function.wit").is_empty());
            assert!(!text("vendor/sdk/guest/src/lib.rs").is_empty());
        }
    }

    #[test]
    fn names() {
        assert!(name("redact-2").is_ok());
        for wrong in ["", "2a", "A", "a_b", "../a", "a/b", "ä"] {
            assert!(name(wrong).is_err(), "{wrong}");
        }
    }
}
