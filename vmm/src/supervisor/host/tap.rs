//! The queues of a tap.

use std::io;
use std::os::fd::OwnedFd;

use anyhow::{Result, anyhow};
use nix::errno::Errno;
use outboard_protocol::tap;

/// The queues of a tap, which every back-end of the card is lent in turn. What
/// they have set of it is taken back when this is dropped, after the last of
/// them, however that one ended.
#[derive(Debug)]
pub(crate) struct TapQueues {
    name: String,
    queues: Vec<OwnedFd>,
}

impl TapQueues {
    /// Opens as many queues as there are `pairs`.
    ///
    /// # Errors
    /// A message that names the tap and says what to do.
    pub(crate) fn open(name: &str, pairs: u16) -> Result<Self> {
        let queues = tap::open(name, pairs).map_err(|error| anyhow!(error))?;
        let name = name.to_owned();
        Ok(Self { name, queues })
    }

    /// The name of its interface.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Copies of the descriptors, to be lent.
    ///
    /// # Errors
    /// Those of fcntl(2).
    pub(crate) fn copies(&self) -> io::Result<Vec<OwnedFd>> {
        self.queues.iter().map(OwnedFd::try_clone).collect()
    }
}

impl Drop for TapQueues {
    fn drop(&mut self) {
        // Of one that was deleted there is nothing to be taken back.
        if let Err(errno) = tap::make_as_new(&self.queues)
            && errno != Errno::EBADFD
        {
            let name = &self.name;
            log::warn!("tap {name}: its filter and offloads are left as they are: {errno}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tap_that_is_not_there_is_named() {
        let error = TapQueues::open("no-such-tap", 1).unwrap_err().to_string();
        assert!(error.contains("no-such-tap does not exist"), "{error}");
    }
}
