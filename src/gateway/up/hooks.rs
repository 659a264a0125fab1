//! PreUp, PostUp, PreDown, PostDown: the administrator's own commands, as wg-quick(8) runs them.

use super::{Console, Failure, Result};
use crate::gateway::executable::BACKGROUND_CHILD;
use crate::gateway::interrupt::Interrupt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

/// Pause between two checks whether a hook has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The environment variable that names the tunnel on which a hook's own ringtun is part of another command.
pub(super) const LOCK_HELD: &str = "RINGTUN_TURN";

/// What a hook learns of its tunnel.
#[derive(Clone, Copy)]
pub(super) struct HookContext<'a> {
    /// The interface's name, which stands for `%i` and is INTERFACE in the environment.
    pub(super) interface: &'a str,
    /// The configuration's path, which is CONFIG_FILE in the environment.
    pub(super) file: &'a Path,
}

/// Runs the hooks one after the other, until one fails. A signal is passed on to the hook that runs.
pub(super) fn run(
    hooks: &[String],
    place: HookContext<'_>,
    console: &mut Console<'_>,
    interrupt: &Interrupt,
) -> Result<()> {
    for hook in hooks {
        interrupt.check()?;
        let hook = expand(hook, place.interface);
        console.command(&hook);
        let child = shell(&hook, place).spawn().map_err(Failure::of(format!("cannot run `{hook}`")))?;
        let status = wait(child, interrupt).map_err(Failure::of(format!("`{hook}`")))?;
        interrupt.check()?;
        if !status.success() {
            return Err(Failure::new(format!("`{hook}`: {status}")));
        }
    }
    Ok(())
}

fn expand(hook: &str, interface: &str) -> String {
    hook.replace("%i", interface)
}

/// The command for a hook: bash with the options that wg-quick evaluates hooks under, or sh where there is no bash.
/// wg-quick's own variables are set, since it evaluates hooks in a shell that has them.
fn shell(hook: &str, place: HookContext<'_>) -> Command {
    let mut command;
    match find("bash") {
        Some(bash) => {
            command = Command::new(bash);
            command.args(["-e", "-o", "pipefail", "-O", "extglob", "-c", hook]);
        }
        None => {
            command = Command::new("sh");
            command.args(["-e", "-c", hook]);
        }
    }
    command.env("LC_ALL", "C").env("INTERFACE", place.interface).env("CONFIG_FILE", place.file);
    command.env(LOCK_HELD, place.interface);
    command
}

/// The command for a hook that is part of no other command, with its text. The caller adds to its environment.
pub(in crate::gateway) fn lone(hook: &str, interface: &str, file: &Path) -> (String, Command) {
    let text = expand(hook, interface);
    let mut command = shell(&text, HookContext { interface, file });
    command.env_remove(LOCK_HELD).env_remove(BACKGROUND_CHILD).env_remove("NOTIFY_SOCKET");
    (text, command)
}

fn wait(mut child: Child, interrupt: &Interrupt) -> std::io::Result<ExitStatus> {
    let mut forwarded = false;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if interrupt.requested() && !forwarded {
            forwarded = true;
            // The hook may have ended just now.
            let _ = rustix::process::kill_process(
                rustix::process::Pid::from_child(&child),
                rustix::process::Signal::TERM,
            );
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// The path of a program that is found in PATH, or in an administrator's usual PATH.
pub(in crate::gateway) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin";
    path.split(':').map(|directory| Path::new(directory).join(program)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_percent_i_becomes_the_interface() {
        assert_eq!(
            expand("ip route add 1.2.3.4 dev %i; echo %i%i %d", "wg0"),
            "ip route add 1.2.3.4 dev wg0; echo wg0wg0 %d"
        );
    }

    fn place() -> HookContext<'static> {
        HookContext { interface: "wg0", file: Path::new("/etc/wireguard/wg0.conf") }
    }

    #[test]
    fn a_hook_sees_wg_quicks_variables() {
        let hook = "test $INTERFACE = wg0 && test $CONFIG_FILE = /etc/wireguard/wg0.conf";
        assert!(shell(hook, place()).status().unwrap().success());
    }

    #[test]
    fn a_hook_fails_where_any_of_its_commands_does() {
        for (hook, good) in [("true", true), ("false; true", false), ("exit 3", false)] {
            assert_eq!(shell(hook, place()).status().unwrap().success(), good, "{hook}");
        }
        if find("bash").is_some() {
            assert!(!shell("false | true", place()).status().unwrap().success());
            assert!(shell("[[ wg0 == +(wg)0 ]]", place()).status().unwrap().success());
        }
    }
}
