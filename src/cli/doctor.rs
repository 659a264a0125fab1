//! `doctor`: what this host offers.

use super::output::{paint, print_bytes, print_json};
use crate::gateway::{Failure, doctor};
use clap::Args;
use std::process::ExitCode;

#[derive(Args)]
#[command(after_help = "Examples:
  sudo ringtun doctor
  ringtun doctor --json | jq '.findings[] | select(.level != \"ok\")'

Changes nothing: what must be tried out is tried in a network namespace of its own.
Exit status: 0 a tunnel can run here, 1 it cannot.")]
pub(super) struct DoctorArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &DoctorArgs) -> Result<ExitCode, Failure> {
    let report = doctor::examine();
    match args.json {
        true => print_json(&report)?,
        false => print_bytes(report.text(paint()).as_bytes())?,
    }
    Ok(if report.can_run { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
