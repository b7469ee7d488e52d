//! `vifswitch libvirt-hook`: called by libvirt, attaches the ports of a domain when it starts and deletes them when it has
//! stopped. The ports are described in the domain's metadata.
//!
//! | called as | by | with |
//! |---|---|---|
//! | `/etc/libvirt/hooks/qemu`, or in `qemu.d` | libvirtd | DOMAIN OPERATION SUB-OPERATION EXTRA; the domain's XML on standard input |
//! | `vifswitch-libvirt-up` | `<script path=…/>` of an interface | the name of the tap |
//! | `vifswitch-libvirt-down` | `<downscript path=…/>` | the same |
//!
//! libvirtd waits for the hook while it holds the domain: the hook ends within [`DEADLINE`], whatever it waits for, and never
//! calls libvirt. Only an operation that starts a domain can fail. `reconnect` cannot: libvirtd would kill the running VM.

mod domain;
mod edit;
mod error;
mod operation;
mod port;
mod records;
mod script;
mod switch;
mod syslog;

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use clap::Args;

use self::error::HookError;
use self::operation::Operation;
use super::{SOCKET, warn};

/// Time within which the hook ends.
const DEADLINE: Duration = Duration::from_secs(10);

/// Default label of the hook's ports.
const OWNER: &str = "libvirt";

/// Default directory of what the hook remembers.
const RECORDS: &str = "/run/vifswitch-libvirt";

/// Default directory in which libvirtd keeps the XML of running domains.
const DOMAINS: &str = "/run/libvirt/qemu";

/// The arguments of `libvirt-hook`.
#[derive(Debug, Clone, Args)]
pub struct LibvirtHook {
    /// DOMAIN OPERATION SUB-OPERATION EXTRA, as libvirt gives them to a hook; or `up TAP`, `down TAP` in a script of an
    /// interface
    #[arg(value_name = "ARGUMENT", required = true, num_args = 2..)]
    arguments: Vec<String>,
    /// Path of the switch's API socket
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    socket: PathBuf,
    /// Label of the ports that the hook attaches and deletes
    #[arg(long, value_name = "LABEL", default_value = OWNER)]
    owner: String,
    /// Directory of what the hook remembers until the host restarts
    #[arg(long, value_name = "DIRECTORY", default_value = RECORDS)]
    records: PathBuf,
    /// Directory in which libvirtd keeps the XML of running domains
    #[arg(long, value_name = "DIRECTORY", default_value = DOMAINS)]
    domains: PathBuf,
}

/// What libvirt wants.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Call {
    /// An operation on a domain.
    Domain {
        /// Name of the domain.
        name: String,
        /// The operation.
        operation: Operation,
    },
    /// A tap was made.
    Up(String),
    /// A tap goes.
    Down(String),
}

impl Call {
    fn of(arguments: &[String]) -> Result<Call, String> {
        match arguments {
            [form, tap] if form == "up" => Ok(Call::Up(tap.clone())),
            [form, tap] if form == "down" => Ok(Call::Down(tap.clone())),
            [name, operation, _, ..] => Ok(Call::Domain { name: name.clone(), operation: Operation::named(operation) }),
            _ => Err("expected DOMAIN OPERATION SUB-OPERATION EXTRA, or `up TAP`, or `down TAP`".into()),
        }
    }

    /// Whether an error makes libvirt give up what it does.
    fn may_fail(&self) -> bool {
        match self {
            Call::Domain { operation, .. } => operation.may_fail(),
            Call::Up(_) => true,
            Call::Down(_) => false,
        }
    }

    /// What follows from an error with which libvirt goes on.
    fn consequence(&self) -> &'static str {
        match self {
            Call::Domain { operation: Operation::Reconnect, .. } => {
                "; the domain runs on, with the ports that the switch has; restart libvirtd to repeat"
            }
            Call::Domain { operation: Operation::Stopped | Operation::Release, .. } | Call::Down(_) => {
                "; libvirt goes on, and the next call of the hook deletes the ports that are left"
            }
            _ => "; libvirt goes on",
        }
    }

    /// What it does, for messages.
    fn doing(&self) -> String {
        match self {
            Call::Domain { name, operation } => format!("domain {name:?}, {}", operation.name()),
            Call::Up(tap) => format!("tap {tap:?}, up"),
            Call::Down(tap) => format!("tap {tap:?}, down"),
        }
    }
}

/// The hook, if the program was called by a name of the hook's, by which libvirt executes it without further options.
pub fn called_as(arguments: &[std::ffi::OsString]) -> Option<ExitCode> {
    let (program, given) = arguments.split_first()?;
    let form: &[&str] = match Path::new(program).file_name().and_then(OsStr::to_str)? {
        "qemu" | "vifswitch-libvirt-hook" => &[],
        "vifswitch-libvirt-up" => &["up"],
        "vifswitch-libvirt-down" => &["down"],
        _ => return None,
    };
    let given = given.iter().map(|argument| argument.to_string_lossy().into_owned());
    let hook = LibvirtHook {
        arguments: form.iter().map(ToString::to_string).chain(given).collect(),
        socket: SOCKET.into(),
        owner: OWNER.into(),
        records: RECORDS.into(),
        domains: DOMAINS.into(),
    };
    Some(hook.run())
}

impl LibvirtHook {
    /// Does what libvirt wants, within the deadline. Standard output stays empty: to some operations it is the XML to use.
    pub fn run(self) -> ExitCode {
        let call = match Call::of(&self.arguments) {
            Ok(call) => call,
            Err(usage) => {
                warn(format_args!("libvirt-hook: {usage}; see vifswitch libvirt-hook --help"));
                return ExitCode::from(2);
            }
        };
        let socket = self.socket.clone();
        let error = match within(DEADLINE, {
            let call = call.clone();
            move || self.carry_out(&call)
        }) {
            Some(Ok(())) => return ExitCode::SUCCESS,
            Some(Err(error)) => error,
            None => HookError::Late { socket, seconds: DEADLINE.as_secs() },
        };
        if call.may_fail() {
            warn(format_args!("libvirt-hook: {}: {error}", call.doing()));
            return error.exit_code();
        }
        let text = format!("libvirt-hook: {}: {error}{}", call.doing(), call.consequence());
        warn(&text);
        // libvirtd does not log what a hook prints that succeeds.
        syslog::warn(Path::new(syslog::SOCKET), &text);
        ExitCode::SUCCESS
    }

    fn carry_out(&self, call: &Call) -> Result<(), HookError> {
        match call {
            Call::Domain { name, operation } => operation.carry_out(self, name, io::stdin()),
            Call::Up(tap) => script::up(self, tap),
            Call::Down(tap) => script::down(self, tap),
        }
    }
}

/// The result of `work`; `None` if it takes longer. Whatever it waits for is left behind then.
fn within<T: Send + 'static>(deadline: Duration, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (send, receive) = mpsc::channel();
    // Nobody receives after the deadline.
    let spawned = thread::Builder::new().spawn(move || drop(send.send(work())));
    spawned.ok()?;
    receive.recv_timeout(deadline).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(arguments: &[&str]) -> Result<Call, String> {
        Call::of(&arguments.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn arguments_say_which_form_it_is() {
        let domain = |name: &str, operation| Ok(Call::Domain { name: name.into(), operation });
        assert_eq!(call(&["fw-3", "start", "begin", "-"]), domain("fw-3", Operation::Start));
        assert_eq!(call(&["up", "stopped", "end", "-"]), domain("up", Operation::Stopped));
        assert_eq!(call(&["fw-3", "migrate", "begin", "-", "more"]), domain("fw-3", Operation::Migrate));
        assert_eq!(call(&["fw-3", "new-in-libvirt", "begin", "-"]), domain("fw-3", Operation::Other));
        assert_eq!(call(&["up", "vnet7"]), Ok(Call::Up("vnet7".into())));
        assert_eq!(call(&["down", "vnet7"]), Ok(Call::Down("vnet7".into())));
        for wrong in [&[][..], &["up"], &["vnet7"], &["sideways", "vnet7"]] {
            assert!(call(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn only_what_starts_something_may_fail() {
        for (arguments, may_fail) in [
            (&["d", "prepare", "begin", "-"][..], true),
            (&["d", "start", "begin", "-"], true),
            (&["d", "started", "begin", "-"], false),
            (&["d", "reconnect", "begin", "-"], false),
            (&["d", "stopped", "end", "-"], false),
            (&["d", "release", "end", "-"], false),
            (&["d", "migrate", "begin", "-"], false),
            (&["d", "restore", "begin", "-"], false),
            (&["up", "vnet7"], true),
            (&["down", "vnet7"], false),
        ] {
            assert_eq!(call(arguments).unwrap().may_fail(), may_fail, "{arguments:?}");
        }
    }

    #[test]
    fn the_name_of_the_program_says_which_form_it_is() {
        for program in ["vifswitch", "/usr/bin/vifswitch", "/usr/bin/qemu-system-x86_64", "", "/"] {
            assert!(called_as(&[program.into(), "up".into(), "vnet7".into()]).is_none(), "{program}");
        }
        assert!(called_as(&[]).is_none());
        // without arguments they are wrong usage, and touch nothing
        for program in
            ["/etc/libvirt/hooks/qemu", "vifswitch-libvirt-hook", "vifswitch-libvirt-up", "vifswitch-libvirt-down"]
        {
            assert_eq!(called_as(&[program.into()]), Some(ExitCode::from(2)), "{program}");
        }
    }

    #[test]
    fn work_that_hangs_is_left_behind() {
        assert_eq!(within(Duration::from_secs(60), || 7), Some(7));
        let (hold, held) = mpsc::channel::<()>();
        assert_eq!(within(Duration::from_millis(1), move || held.recv_timeout(Duration::from_secs(20)).is_ok()), None);
        drop(hold);
    }
}
