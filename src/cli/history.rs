//! Commands about the last generations of the desired configuration: `history` and `rollback`.

use std::fmt::Write;

use clap::Args;
use hyper::Method;
use serde_json::{Value, json};

use super::change::format_result;
use super::table::printable;
use super::{CliError, Connection};
use crate::control::desired::change::ChangeResult;
use crate::control::state::history::{GenerationView, Source};

/// The arguments of `history`.
#[derive(Debug, Args)]
pub struct History {
    #[command(flatten)]
    at: Connection,
}

/// The arguments of `rollback`.
#[derive(Debug, Args)]
pub struct Rollback {
    /// Generation as listed by `vifswitch history`; by default the one before the newest
    #[arg(value_name = "GENERATION")]
    generation: Option<u64>,
    /// Revert after SECONDS unless confirmed by `vifswitch confirm`
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=86400))]
    confirm: Option<u32>,
    /// Print what would change; change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    at: Connection,
}

impl History {
    /// Sends the request; returns the text to print.
    pub fn run(&self) -> Result<String, CliError> {
        self.at.request(Method::GET, "/v1/history", None, |generations: Vec<GenerationView>| {
            let mut text = String::new();
            for generation in generations {
                describe(&mut text, &generation);
            }
            text
        })
    }
}

fn describe(text: &mut String, of: &GenerationView) {
    let source = match of.source {
        Source::File => "configuration file",
        Source::Api => "API",
        Source::Revert => "revert of an unconfirmed change",
        Source::Rollback => "rollback",
        Source::Netns => "end of network namespaces",
        Source::State => "stored state",
    };
    let by = of.by.as_ref().map_or_else(String::new, |by| {
        let number =
            |name: &str, number: Option<u32>| number.map(|number| format!(" {name} {number}")).unwrap_or_default();
        format!(",{}{} request {}", number("uid", by.uid), number("pid", by.pid), by.request_id)
    });
    let note = if of.restorable { "" } else { " (cannot be restored)" };
    // Writing to a string does not fail.
    let _ = writeln!(text, "{}", printable(format!("{}  {}  {source}{by}{note}", of.generation, of.time)));
    for change in &of.changes {
        let _ = writeln!(text, "    {}", printable(change.clone()));
    }
    if of.omitted > 0 {
        let _ = writeln!(text, "    and {} more", of.omitted);
    }
}

impl Rollback {
    /// Sends the request; returns the text to print.
    pub fn run(&self) -> Result<String, CliError> {
        let confirm = self.confirm.map(|seconds| format!("confirm={seconds}"));
        let query: Vec<String> = confirm.into_iter().chain(self.dry_run.then(|| "dry_run=true".to_owned())).collect();
        let mark = if query.is_empty() { "" } else { "?" };
        let body: Value = self.generation.map_or_else(|| json!({}), |generation| json!({ "generation": generation }));
        let path = format!("/v1/rollback{mark}{}", query.join("&"));
        self.at.request(Method::POST, &path, Some(&body), |changed: ChangeResult| {
            let mut text = format_result(&changed, "no changes");
            if let Some(seconds) = self.confirm
                && !self.dry_run
                && !changed.changes.is_empty()
            {
                let _ = writeln!(text, "reverts in {seconds} seconds unless confirmed by `vifswitch confirm`");
            }
            text
        })
    }
}
