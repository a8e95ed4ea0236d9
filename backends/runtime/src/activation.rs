//! Socket activation: a service manager listens, and starts the program with
//! the socket when somebody connects (sd_listen_fds(3)).

use std::ffi::OsString;
use std::os::fd::RawFd;

use anyhow::bail;

/// The descriptor of the socket that is passed.
pub const PASSED: RawFd = 3;

/// Whether the process `pid` has been passed a socket, as its environment says:
/// `LISTEN_PID` is meant for it, and `LISTEN_FDS` is 1. Names
/// (`LISTEN_FDNAMES`) do not matter for one.
///
/// # Errors
/// More than one has been passed, or the number is none.
pub fn passed(variable: impl Fn(&str) -> Option<OsString>, pid: u32) -> anyhow::Result<bool> {
    let number = |name| variable(name).map(|text| text.to_str()?.parse::<u32>().ok());
    // What was meant for another process may have been inherited from it.
    if number("LISTEN_PID") != Some(Some(pid)) {
        return Ok(false);
    }
    match number("LISTEN_FDS") {
        None | Some(Some(0)) => Ok(false),
        Some(Some(1)) => Ok(true),
        Some(Some(count)) => bail!(
            "the service manager has passed {count} sockets (LISTEN_FDS); this program serves \
             one: give its socket unit one ListenStream="
        ),
        Some(None) => bail!("LISTEN_FDS is no number"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_socket_for_this_process_is_passed() {
        let passed = |pid: Option<&str>, fds: Option<&str>| {
            let variable = |name: &str| match name {
                "LISTEN_PID" => pid.map(OsString::from),
                "LISTEN_FDS" => fds.map(OsString::from),
                _ => None,
            };
            passed(variable, 77)
        };
        assert!(passed(Some("77"), Some("1")).unwrap());
        for (pid, fds) in [
            (None, Some("1")),
            (Some("78"), Some("1")),
            (Some("x"), Some("1")),
            (Some("78"), Some("x")),
            (Some("77"), None),
            (Some("77"), Some("0")),
        ] {
            assert!(!passed(pid, fds).unwrap(), "{pid:?} {fds:?}");
        }
        for (fds, words) in [("2", "one ListenStream="), ("x", "no number"), ("-1", "no")] {
            let error = passed(Some("77"), Some(fds)).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
