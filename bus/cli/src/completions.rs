//! `bus completions`.

use std::io::Write as _;

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

/// Print the shell's completions
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  bus completions bash > /etc/bash_completion.d/bus
  bus completions zsh > \"${fpath[1]}/_bus\"
  bus completions fish > ~/.config/fish/completions/bus.fish")]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

pub(crate) fn run(args: &Completions) -> anyhow::Result<()> {
    // Into memory first: the generator panics where a write fails.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut crate::args::Cli::command(), "bus", &mut script);
    let mut out = crate::output::stdout();
    out.write_all(&script)?;
    Ok(out.flush()?)
}
