//! `import`, `export`: between wg-quick's language and OpenBSD's.

use super::candidates;
use super::config::load;
use super::output::print_secret;
use crate::gateway::Failure;
use crate::gateway::config::{ConfigError, ConfigErrors, LoadError};
use crate::gateway::peering::openbsd;
use clap::{Args, ValueEnum};
use clap_complete::engine::ArgValueCompleter;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

#[derive(Args)]
#[command(after_help = "Example:
  (umask 077; ringtun import hostname.wg0 > /etc/wireguard/wg0.conf)

What a wg-quick file cannot express, such as commands and routes that no wgaip covers, is reported by line on standard error.")]
pub(super) struct ImportArgs {
    /// A hostname.if(5) file of OpenBSD
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

#[derive(Args)]
#[command(after_help = "Example:
  ringtun export wg0 --for openbsd | ssh root@client 'umask 027; cat > /etc/hostname.wg0 && sh /etc/netstart wg0'

What a hostname.if(5) file cannot express is reported on standard error.")]
pub(super) struct ExportArgs {
    /// Interface's name, or a file NAME.conf
    #[arg(value_name = "NAME|FILE", add = ArgValueCompleter::new(candidates::configurations))]
    given: String,
    /// The system whose format to write
    #[arg(long = "for", value_name = "SYSTEM")]
    system: ExportFor,
}

#[derive(Clone, Copy, ValueEnum)]
enum ExportFor {
    /// hostname.if(5)
    Openbsd,
}

pub(super) fn import(args: &ImportArgs) -> Result<(), Failure> {
    let bytes = std::fs::read(&args.file).map_err(Failure::of(args.file.display()))?;
    let bytes = Zeroizing::new(bytes);
    let text = Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned());
    let (config, left_out) =
        openbsd::parse(&text).map_err(|errors| LoadError::Content(at(&args.file, errors)))?;
    if !left_out.is_empty() {
        eprintln!("not carried over:\n{}", at(&args.file, left_out));
    }
    print_secret(config.print().as_bytes())
}

fn at(file: &Path, errors: Vec<ConfigError>) -> ConfigErrors {
    ConfigErrors { file: file.to_owned(), errors }
}

pub(super) fn export(args: &ExportArgs) -> Result<(), Failure> {
    let loaded = load(&args.given)?;
    let (text, left_out) = match args.system {
        ExportFor::Openbsd => openbsd::print(&loaded.config),
    };
    for what in left_out {
        eprintln!("not carried over: {what}");
    }
    print_secret(text.as_bytes())
}
