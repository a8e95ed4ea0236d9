//! Why a session is over, as a type beside the sentence that says it. It is
//! found in an error whatever context has been put around that.

use std::fmt;
use std::io;

use anyhow::Error;
use nix::errno::Errno;
use outboard_protocol::descriptors::NoRoom;
use outboard_protocol::launch::Cause;
use outboard_protocol::wire::WireError;

/// An error whose cause is known; displays as its text alone.
#[derive(Debug)]
struct Known {
    cause: Cause,
    text: String,
}

impl fmt::Display for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Known {}

/// An error of this cause, in these words. Where a back-end has said what none
/// may say, that need not be told: it is the cause of every other error.
pub(crate) fn because(cause: Cause, text: impl Into<String>) -> Error {
    let text = text.into();
    Known { cause, text }.into()
}

/// Why a session ended with this error; `None` when no back-end is to blame but
/// this process, which has no room for a descriptor or for whatever else it
/// asked the kernel for.
pub(crate) fn cause_of(error: &Error) -> Option<Cause> {
    if NoRoom::within(error.as_ref()).is_some() {
        return None;
    }
    for part in error.chain() {
        if let Some(known) = part.downcast_ref::<Known>() {
            return Some(known.cause);
        }
        if let Some(error) = part.downcast_ref::<WireError>() {
            return Some(cause_on_the_wire(error));
        }
        // What fails on a connection is one of the two above.
        if part.is::<io::Error>() || part.is::<Errno>() {
            return None;
        }
    }
    Some(Cause::BrokeProtocol)
}

/// The same, of what became of a message.
pub(crate) fn cause_on_the_wire(error: &WireError) -> Cause {
    match error {
        WireError::Closed | WireError::Io(_) => Cause::Gone,
        WireError::TimedOut => Cause::Silent,
        WireError::Malformed(_) => Cause::BrokeProtocol,
    }
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    #[test]
    fn a_cause_is_found_under_whatever_was_said_around_it() {
        let silent = because(Cause::Silent, "nothing came");
        assert_eq!(format!("{silent:#}"), "nothing came");
        let within = silent.context("a queue").context("a device");
        assert_eq!(cause_of(&within), Some(Cause::Silent));
        let closed = Err::<(), _>(WireError::Closed).context("a request");
        assert_eq!(cause_of(&closed.unwrap_err()), Some(Cause::Gone));
        let wrong = anyhow!("a wrong answer").context("a request");
        assert_eq!(cause_of(&wrong), Some(Cause::BrokeProtocol));
    }

    #[test]
    fn what_this_process_cannot_have_is_nobody_else_s_fault() {
        let no_memory = io::Error::from_raw_os_error(Errno::ENOMEM as i32);
        let error = Error::new(no_memory).context("making an eventfd");
        assert_eq!(cause_of(&error), None);
        let error = Error::new(Errno::ENOMEM).context("waiting");
        assert_eq!(cause_of(&error), None);
        let full = io::Error::from_raw_os_error(Errno::EMFILE as i32);
        let error = Error::new(WireError::Io(full)).context("an answer");
        assert_eq!(cause_of(&error), None);
        let failed = io::Error::from_raw_os_error(Errno::ENOTCONN as i32);
        let error = Error::new(WireError::Io(failed));
        assert_eq!(cause_of(&error), Some(Cause::Gone));
    }
}
