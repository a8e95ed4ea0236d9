//! Processes: how one is started, and how it ends.

pub mod child;
#[allow(unsafe_code)]
pub mod spawn;
