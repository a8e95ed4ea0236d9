//! The post between the machine's threads: a mailbox for each that is written to,
//! and what is written to the owners of devices. vCPU threads write
//! to an owner, an owner writes to the main loop; neither waits for an answer.

mod command;
mod mailbox;

pub(crate) use self::command::{Command, Newcomer};
pub(crate) use self::mailbox::Mailbox;
