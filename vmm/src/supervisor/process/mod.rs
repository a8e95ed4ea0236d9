//! Processes: how one is started, and how it ends.

pub(crate) mod child;
#[allow(unsafe_code)]
pub mod spawn;
