//! The function's settings.

use std::cell::OnceCell;

thread_local! {
    static SETTINGS: OnceCell<Vec<(String, String)>> = const { OnceCell::new() };
}

/// The setting `key`, as given with `--config key=value` when the function was deployed. Asks the host once for
/// all settings, which do not change while an instance lives. Off Wasm, [`crate::testing::set_config`] sets them.
pub fn config(key: &str) -> Option<&'static str> {
    thread_local! {
        static LEAKED: OnceCell<&'static [(String, String)]> = const { OnceCell::new() };
    }
    let all = LEAKED.with(|leaked| {
        *leaked.get_or_init(|| Vec::leak(SETTINGS.with(|s| s.get().cloned().unwrap_or_else(load))))
    });
    all.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
}

#[cfg(target_arch = "wasm32")]
fn load() -> Vec<(String, String)> {
    crate::bindings::transform::bus::function::config::all()
}

#[cfg(not(target_arch = "wasm32"))]
fn load() -> Vec<(String, String)> {
    Vec::new()
}

pub(crate) fn set(settings: Vec<(String, String)>) -> Result<(), Vec<(String, String)>> {
    SETTINGS.with(|cell| cell.set(settings))
}
