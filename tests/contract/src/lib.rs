//! A vhost-user client and a scripted back-end, for tests.
//!
//! - [`memory`]: guest memory to lend;
//! - [`ring`]: the driver's side of a split ring, legal or not;
//! - [`client`]: a front-end that sends any message, whole or broken;
//! - [`driver`]: the driver behind it;
//! - [`scripted`]: a back-end that answers rightly, but where a test says otherwise;
//! - [`program`]: a program under test, as a process;
//! - [`ours`], [`traffic`]: the back-end programs, and what to ask of their devices;
//! - [`model`], [`walk`]: which messages are legal when, and walks through them.

pub mod client;
pub mod driver;
pub mod memory;
pub mod model;
pub mod ours;
pub mod program;
pub mod ring;
pub mod scripted;
pub mod traffic;
pub mod walk;

use std::time::Duration;

use outboard_protocol::Deadline;

/// A deadline for what must happen: generous, since machines are slow, and
/// finite, since a test must end.
pub fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(120))
}
