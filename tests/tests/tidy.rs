//! The house rules that clippy cannot keep.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};

/// The root of the repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// All files below `folder` with one of these endings, without build output.
fn files(folder: &Path, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                if name != "target" && name != ".git" && !name.starts_with("bus-data") {
                    folders.push(path);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// How many of a source file's lines are not tests: those before its `mod tests {`; none where the whole file is one.
fn product_lines(path: &Path, text: &str) -> usize {
    let shown = shown(path);
    if shown.starts_with("tests/")
        || shown.contains("/tests/")
        || shown.contains("/benches/")
        || is_test_module(path)
    {
        return 0;
    }
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    let tests = lines.windows(2).position(|pair| pair[0] == "#[cfg(test)]" && pair[1].ends_with('{'));
    tests.unwrap_or(lines.len())
}

/// Whether the file's parent declares it for tests only: `#[cfg(test)]`, then `mod NAME;`.
fn is_test_module(path: &Path) -> bool {
    let name = path.file_stem().unwrap().to_str().unwrap();
    let folder = path.parent().unwrap();
    let parents =
        [folder.join("mod.rs"), folder.join("lib.rs"), folder.join("main.rs"), folder.with_extension("rs")];
    parents.iter().filter(|parent| *parent != path).filter_map(|parent| fs::read_to_string(parent).ok()).any(
        |text| {
            let lines: Vec<_> = text.lines().map(str::trim).collect();
            let declaration = format!("mod {name};");
            lines.windows(2).any(|pair| pair[0] == "#[cfg(test)]" && pair[1].ends_with(&declaration))
        },
    )
}

fn fail_if_any(faults: Vec<String>, rule: &str) {
    assert!(faults.is_empty(), "{rule}:\n  {}", faults.join("\n  "));
}

#[test]
fn files_are_short() {
    let mut faults = Vec::new();
    for path in files(&root(), &[".rs"]) {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        if lines > 800 {
            faults.push(format!("{} has {lines} lines", shown(&path)));
        } else if lines > 500 {
            eprintln!("note: {} has {lines} lines; 500 is the aim", shown(&path));
        }
    }
    fail_if_any(faults, "a file holds one noun, in at most 800 lines: split it");
}

#[test]
fn nothing_is_left_undone() {
    // Built up here, so that this file does not hold them.
    let words = [["todo", "!("].concat(), ["unimplemented", "!("].concat(), ["FIX", "ME"].concat()];
    let mut faults = Vec::new();
    for path in files(&root(), &[".rs", ".toml", ".sh", ".wit"]) {
        for (number, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
            if words.iter().any(|word| line.contains(word)) {
                faults.push(format!("{}:{}: {}", shown(&path), number + 1, line.trim()));
            }
        }
    }
    fail_if_any(faults, "finish it, or write down an issue");
}

#[test]
fn nothing_unwraps_outside_tests() {
    let mut faults = Vec::new();
    for path in files(&root(), &[".rs"]) {
        let text = fs::read_to_string(&path).unwrap();
        for (number, line) in text.lines().enumerate().take(product_lines(&path, &text)) {
            let code = line.split("//").next().unwrap_or_default();
            if code.contains(".unwrap()") || code.contains(".expect(\"") {
                faults.push(format!("{}:{}: {}", shown(&path), number + 1, line.trim()));
            }
        }
    }
    fail_if_any(faults, "answer with an error; assert! is for our own bugs");
}

#[test]
fn each_engine_is_named_by_one_crate() {
    let owners = [
        ("quinn", "bus/transport"),
        ("rustls", "bus/transport"),
        ("openraft", "bus/metadata"),
        ("sled", "bus/metadata"),
        ("wasmtime", "bus/function"),
        ("wasmtime-wasi", "bus/function"),
        ("axum", "bus/broker"),
    ];
    let mut faults = Vec::new();
    for manifest in manifests() {
        let folder = shown(manifest.parent().unwrap());
        for dependency in dependencies(&manifest, true) {
            if let Some((_, owner)) = owners.iter().find(|(name, _)| *name == dependency)
                && folder != *owner
            {
                faults.push(format!("{folder} names {dependency}: only {owner} may"));
            }
        }
    }
    fail_if_any(faults, "an engine can be replaced where one crate knows it");
}

#[test]
fn imports_flow_one_way() {
    let allowed: &[(&str, &[&str])] = &[
        ("bus/protocol", &[]),
        ("bus/log", &["bus-protocol"]),
        ("bus/transport", &["bus-protocol"]),
        ("bus/replica", &["bus-log", "bus-protocol"]),
        ("bus/metadata", &["bus-protocol"]),
        ("bus/coordinator", &["bus-protocol"]),
        ("bus/function", &["bus-protocol"]),
        (
            "bus/broker",
            &[
                "bus-coordinator",
                "bus-function",
                "bus-log",
                "bus-metadata",
                "bus-protocol",
                "bus-replica",
                "bus-transport",
            ],
        ),
        (
            "bus/cli",
            &["bus-broker", "bus-client", "bus-function", "bus-log", "bus-protocol", "bus-transport"],
        ),
        ("sdk/client", &["bus-protocol", "bus-transport"]),
        ("sdk/guest", &["bus-guest-macros"]),
        ("sdk/guest/macros", &[]),
    ];
    let mut faults = Vec::new();
    for manifest in manifests() {
        let folder = shown(manifest.parent().unwrap());
        let Some((_, allowed)) = allowed.iter().find(|(name, _)| *name == folder) else { continue };
        for dependency in dependencies(&manifest, false) {
            if dependency.starts_with("bus-") && !allowed.contains(&dependency.as_str()) {
                faults.push(format!("{folder} depends on {dependency}"));
            }
        }
    }
    fail_if_any(faults, "imports flow one way, and siblings meet through traits that the broker implements");
}

#[test]
fn modules_have_names_that_say_something() {
    let mut faults = Vec::new();
    for path in files(&root(), &[".rs"]) {
        let name = path.file_stem().unwrap().to_str().unwrap();
        let folder = path.parent().unwrap().file_name().unwrap().to_str().unwrap();
        if [name, folder]
            .iter()
            .any(|name| matches!(*name, "utils" | "util" | "common" | "helpers" | "helper" | "misc"))
        {
            faults.push(shown(&path));
        }
    }
    fail_if_any(faults, "name a module by what is in it");
}

#[test]
fn every_crate_says_what_it_does() {
    let mut faults = Vec::new();
    for manifest in manifests() {
        for name in ["src/lib.rs", "src/main.rs"] {
            let path = manifest.parent().unwrap().join(name);
            if let Ok(text) = fs::read_to_string(&path)
                && !text.starts_with("//!")
            {
                faults.push(shown(&path));
            }
        }
    }
    fail_if_any(faults, "a crate begins with what it does, a picture, and what it does not do");
}

#[test]
fn the_top_level_is_fixed() {
    let allowed = [
        ".ci",
        ".git",
        ".gitignore",
        ".gitattributes",
        ".github",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE",
        "Makefile",
        "README.md",
        "bus",
        "bus-data",
        "clippy.toml",
        "guest-examples",
        "rustfmt.toml",
        "sdk",
        "target",
        "tests",
        "wit",
    ];
    let entries =
        fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let faults = entries.filter(|name| !allowed.contains(&name.as_str())).collect();
    fail_if_any(faults, "the top level is fixed: find a place below it");
}

#[test]
fn nothing_speaks_of_where_it_was_written() {
    let words = [
        ["/wo", "rk/"].concat(),
        ["/tm", "p/t/"].concat(),
        ["DESIGN", ".md"].concat(),
        ["the iss", "ue says"].concat(),
    ];
    let mut faults = Vec::new();
    for path in files(&root(), &[".rs", ".toml", ".sh", ".md", ".wit", "Makefile", "run"]) {
        for (number, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
            if words.iter().any(|word| line.contains(word)) {
                faults.push(format!("{}:{}: {}", shown(&path), number + 1, line.trim()));
            }
        }
    }
    fail_if_any(faults, "a reader has only this repository");
}

/// All manifests of packages, those of the functions too.
fn manifests() -> Vec<PathBuf> {
    let is_package = |path: &PathBuf| fs::read_to_string(path).unwrap().contains("[package]");
    files(&root(), &["Cargo.toml"]).into_iter().filter(is_package).collect()
}

/// The names in a manifest's `[dependencies]`, and in `[dev-dependencies]` where wanted.
fn dependencies(manifest: &Path, for_tests_too: bool) -> Vec<String> {
    let mut names = Vec::new();
    let mut inside = false;
    for line in fs::read_to_string(manifest).unwrap().lines() {
        let line = line.trim();
        if let Some(section) = line.strip_prefix('[') {
            inside = section == "dependencies]"
                || section == "build-dependencies]"
                || (for_tests_too && section == "dev-dependencies]")
                || section.starts_with("target.") && section.ends_with(".dependencies]");
        } else if inside && !line.starts_with('#') {
            let name = line.split(['.', '=', ' ']).next().unwrap_or_default();
            if !name.is_empty() {
                names.push(name.to_owned());
            }
        }
    }
    names
}
