//! The lives of a device, a machine process and a VM, and their end, without a
//! process: what comes of each event in each state, and random walks.

mod calls;
pub(super) mod lingering;
mod pauses;
mod quiet;
mod recovery;
mod standbys;
mod swaps;
mod tables;
mod walks;
