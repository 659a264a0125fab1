//! `generate`: man pages and completions, for packages.

use super::manual;
use crate::gateway::Failure;
use clap::Subcommand;
use clap_complete::env::{Bash, EnvCompleter, Fish, Zsh};
use std::path::{Path, PathBuf};

/// The variable in which a shell names itself to the program whose command line it completes.
const COMPLETE: &str = "COMPLETE";

#[derive(Subcommand)]
pub(super) enum GenerateCommand {
    /// Write a man page of section 8 for the program and each of its subcommands
    Man {
        /// Directory to write to, which is created where it is missing
        directory: PathBuf,
    },
    /// Write completions for bash, zsh and fish
    Completions {
        /// Directory to write to, which is created where it is missing
        directory: PathBuf,
    },
}

/// Writes what `command` asks for; `program` describes the whole command line.
pub(super) fn run(command: &GenerateCommand, program: clap::Command) -> Result<(), Failure> {
    let (directory, write): (_, fn(clap::Command, &Path) -> std::io::Result<()>) = match command {
        GenerateCommand::Man { directory } => (directory, man),
        GenerateCommand::Completions { directory } => {
            (directory, |program, directory| completions(&program, directory))
        }
    };
    let done = std::fs::create_dir_all(directory).and_then(|()| write(program, directory));
    done.map_err(Failure::of(directory.display()))
}

fn man(program: clap::Command, directory: &Path) -> std::io::Result<()> {
    // The environment of whoever builds the package is no part of the manual.
    let mut command = program.disable_help_subcommand(true).mut_args(|arg| arg.hide_env_values(true));
    // Gives each subcommand its full name.
    command.build();
    write_pages(command, directory)
}

/// Writes the pages `ringtun.8`, `ringtun-peer.8`, `ringtun-peer-add.8` and so on. clap_mangen's own walk takes no
/// section, and so is not used.
fn write_pages(command: clap::Command, directory: &Path) -> std::io::Result<()> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let children: Vec<clap::Command> =
        command.get_subcommands().filter(|child| !child.is_hide_set()).cloned().collect();
    std::fs::write(directory.join(format!("{name}.8")), manual::page(command, &name)?)?;
    children.into_iter().try_for_each(|child| write_pages(child, directory))
}

/// Writes scripts that ask the program itself, since it knows the interfaces, configurations and peers.
fn completions(program: &clap::Command, directory: &Path) -> std::io::Result<()> {
    let name = program.get_name();
    let shells: [(&dyn EnvCompleter, &str); 3] =
        [(&Bash, "ringtun.bash"), (&Zsh, "_ringtun"), (&Fish, "ringtun.fish")];
    for (shell, file) in shells {
        let mut script = Vec::new();
        shell.write_registration(COMPLETE, name, name, name, &mut script)?;
        std::fs::write(directory.join(file), script)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::Cli;
    use clap::CommandFactory;

    #[test]
    fn every_subcommand_has_a_page_and_every_shell_its_completions() {
        let directory = std::env::temp_dir().join(format!("rt-generate-{}", std::process::id()));
        run(&GenerateCommand::Man { directory: directory.clone() }, Cli::command()).unwrap();
        run(&GenerateCommand::Completions { directory: directory.clone() }, Cli::command()).unwrap();
        for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            let page =
                std::fs::read_to_string(directory.join(format!("ringtun-{}.8", command.get_name()))).unwrap();
            assert!(page.contains(&format!("ringtun\\-{}", command.get_name())), "{page}");
            for section in ["EXAMPLES", "ENVIRONMENT", "FILES", "\"EXIT STATUS\"", "\"SEE ALSO\""] {
                let wanted = section != "EXAMPLES" || command.get_after_help().is_some();
                assert_eq!(page.contains(&format!(".SH {section}\n")), wanted, "{section}: {page}");
            }
        }
        assert!(!directory.join("ringtun-generate.8").exists());
        for file in ["ringtun.8", "ringtun-peer-add.8", "ringtun.bash", "_ringtun", "ringtun.fish"] {
            assert!(std::fs::read_to_string(directory.join(file)).unwrap().contains("ringtun"), "{file}");
        }
        std::fs::remove_dir_all(directory).unwrap();
    }
}
