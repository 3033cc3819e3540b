//! The guest SDK's own source, packed into the binary by the build script.

include!(concat!(env!("OUT_DIR"), "/sdk.rs"));

/// The manifest above [`FILES`]: this repository's, with no members but the SDK.
pub(super) fn workspace() -> String {
    let lines = WORKSPACE.lines().filter(|line| !line.starts_with("exclude = "));
    let lines = lines.map(|line| match line.starts_with("members = ") {
        true => "members = [\"sdk/guest\", \"sdk/guest/macros\"]",
        false => line,
    });
    lines.flat_map(|line| [line, "\n"]).collect()
}
