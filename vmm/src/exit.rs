//! How `outboard run` ends: its exit codes, which scripts may rely on.

use std::process::{ExitCode, Termination};

/// An exit code of `outboard run`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// The guest powered off or asked for a reset, or a signal asked for the
    /// end and the VM was stopped in order.
    Success = 0,
    /// The VM could not be started.
    CannotStart = 1,
    /// The command line or the configuration file is wrong; nothing was
    /// opened or started.
    Usage = 2,
    /// The guest crashed: a triple fault.
    TripleFault = 3,
    /// KVM gave up on the guest.
    KvmError = 4,
    /// A back-end died, or its session with the machine broke.
    BackEndDied = 5,
    /// The machine process died.
    MachineDied = 6,
}

/// The exit codes as `outboard run --help` and the README show them.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  the guest powered off or asked for a reset, or SIGTERM, SIGINT, SIGHUP or
     Ctrl-A x stopped the VM in order
  1  the VM could not be started; the message says why
  2  the command line or the configuration file is wrong; nothing was started
  3  the guest crashed (triple fault)
  4  KVM gave up on the guest (internal error)
  5  a back-end died or its session broke; the message names it
  6  the machine process died, or said that it cannot go on";

impl Termination for Exit {
    fn report(self) -> ExitCode {
        ExitCode::from(self as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_in_the_help() {
        for exit in [
            Exit::Success,
            Exit::CannotStart,
            Exit::Usage,
            Exit::TripleFault,
            Exit::KvmError,
            Exit::BackEndDied,
            Exit::MachineDied,
        ] {
            let line = format!("\n  {}  ", exit as u8);
            assert!(EXIT_CODES.contains(&line), "{exit:?}");
        }
    }
}
