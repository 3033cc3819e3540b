//! The command line: verbs, and the flags that all of them take.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::output::Format;
use crate::{bench, cluster, completions, consume, demo, dev, function, produce, start, topic};

/// An event bus in one binary: partitioned, durable logs, and your code beside them.
#[derive(Debug, Parser)]
#[command(name = "bus", version, arg_required_else_help = true, propagate_version = false)]
#[command(after_help = "Examples:
  bus start          # a broker on this machine, data in ./bus-data
  bus topic create orders --partitions 3
  echo hello | bus produce orders
  bus consume orders --from start --until end
  bus dev --nodes 3  # a throwaway cluster of three
  bus function deploy redact redact.wasm --transform orders

Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 130 interrupted.")]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// Flags that every verb takes.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Everywhere")]
pub(crate) struct Global {
    // Not clap's `env`: a usage line would show the flag as one that is asked for wherever the variable is set.
    /// Brokers to find the cluster by [env: BUS_SERVER] [default: 127.0.0.1:9440]
    #[arg(long, global = true, value_name = "HOST:PORT,...")]
    server: Option<String>,
    /// The CA that signed the brokers' certificates (PEM); brokers on this machine need no flag
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "insecure")]
    pub(crate) ca: Option<PathBuf>,
    /// Take any certificate: encrypted, but open to whoever is on the way
    #[arg(long, global = true)]
    pub(crate) insecure: bool,
    /// How to print: a table, or one JSON object a line
    #[arg(short = 'o', global = true, value_enum, value_name = "FORMAT", default_value_t = Format::Table)]
    pub(crate) format: Format,
}

impl Global {
    /// Brokers to find the cluster by: the flag, else `BUS_SERVER`, else this machine's.
    pub(crate) fn server(&self) -> String {
        let set = || std::env::var("BUS_SERVER").ok().filter(|server| !server.is_empty());
        self.server.clone().or_else(set).unwrap_or_else(|| "127.0.0.1:9440".to_owned())
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Start(start::Start),
    Dev(dev::Dev),
    Demo(demo::Demo),
    #[command(subcommand)]
    Topic(topic::Topic),
    Produce(produce::Produce),
    Consume(consume::Consume),
    #[command(subcommand)]
    Function(function::Function),
    #[command(subcommand)]
    Cluster(cluster::Cluster),
    Bench(bench::Bench),
    Completions(completions::Completions),
}

/// Lets `--config a=1 b=2` stand for `--config a=1 --config b=2`, and likewise for `--header` and `--output`. Clap's own
/// lists would swallow a positional argument that follows (`--header a=1 FILE`).
pub(crate) fn spread(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut spread: Vec<OsString> = Vec::new();
    let mut open: Option<&'static str> = None;
    let mut values = 0;
    let mut literal = false;
    for argument in arguments {
        let text = argument.to_str().unwrap_or_default();
        if literal || text.starts_with('-') {
            literal |= text == "--";
            open = ["--config", "--header", "--output"].into_iter().find(|flag| *flag == text);
            values = 0;
        } else if let Some(flag) = open {
            let belongs = match flag {
                "--output" => !text.ends_with(".wasm"),
                _ => text.split_once('=').is_some_and(|(key, _)| !key.is_empty() && !key.contains('/')),
            };
            if values > 0 && belongs {
                spread.push(flag.into());
            } else if values > 0 {
                open = None;
            }
            values += 1;
        }
        spread.push(argument);
    }
    spread
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    use super::*;

    fn spread_words(line: &str) -> String {
        let words = spread(line.split(' ').map(OsString::from));
        words.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_usage_line_asks_for_nothing_that_is_not_needed() {
        let usage = |words: &str| Cli::try_parse_from(words.split(' ')).unwrap_err().to_string();
        assert!(usage("bus topic delete").contains("Usage: bus topic delete <NAME>\n"));
        assert!(usage("bus produce").contains("Usage: bus produce <TOPIC> [FILES]...\n"));
    }

    #[test]
    fn every_verb_shows_examples() {
        fn check(command: &clap::Command) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Examples:"), "`{}` has no examples", command.get_name());
            command.get_subcommands().filter(|verb| verb.get_name() != "help").for_each(check);
        }
        check(&Cli::command());
    }

    /// Clap wraps to the terminal: a paragraph that is wrapped in the source as well would be torn.
    #[test]
    fn help_is_wrapped_once_and_examples_fit_a_narrow_terminal() {
        fn check(command: &clap::Command) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            for line in help.lines() {
                let is_example = line.starts_with("  ");
                assert!(!is_example || line.len() <= 80, "{} characters: {line}", line.len());
                let ends = line.is_empty() || line.ends_with(['.', ':']);
                assert!(is_example || ends, "`{}` has a paragraph that ends in: {line}", command.get_name());
            }
            command.get_subcommands().filter(|verb| verb.get_name() != "help").for_each(check);
        }
        check(&Cli::command());
    }

    #[test]
    fn lists_of_settings_spread_and_leave_positionals_alone() {
        assert_eq!(
            spread_words("bus topic create t --config a=1 b=2 --if-not-exists"),
            "bus topic create t --config a=1 --config b=2 --if-not-exists"
        );
        assert_eq!(
            spread_words("bus produce t --header a=1 b=2 in.txt c=3"),
            "bus produce t --header a=1 --header b=2 in.txt c=3"
        );
        assert_eq!(
            spread_words("bus function deploy f --output a b f.wasm"),
            "bus function deploy f --output a --output b f.wasm"
        );
        assert_eq!(spread_words("bus topic create --config a=1 t"), "bus topic create --config a=1 t");
    }
}
