//! The part that every back-end shares: session, rings, event loop, inflight
//! region, command line. A device sees none of it ([`device`]).

pub mod chain;
pub mod device;

pub use chain::{Buffer, Chain};
pub use device::{Device, Memory, Outcome, Queue};
