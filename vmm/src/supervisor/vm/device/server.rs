//! Who serves a device, whatever has been opened for it.

use outboard_protocol::launch::Whose;

/// Who serves a device, or is to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Server {
    /// What it is called: a program's name, or a socket's path.
    pub(crate) name: String,
    /// Whether somebody must be found before it can begin.
    pub(crate) seeks: bool,
    /// Whose program is started for it, if one is.
    pub(crate) program: Option<Whose>,
    /// Whose it is, as the machine is told.
    pub(crate) whose: Whose,
    /// It is lent an image.
    pub(crate) has_image: bool,
    /// It can be told to wait only by its line: it sets up, as it starts, what is behind the
    /// device.
    pub(crate) must_wait: bool,
}
