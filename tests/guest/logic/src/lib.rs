//! The parts of the bundled guest that need no machine: they are tested on the host.
#![cfg_attr(not(test), no_std)]
#![deny(missing_docs)]

extern crate alloc;

pub mod datagram;
pub mod flow;
pub mod gaps;
pub mod histogram;
pub mod ledger;
pub mod packet;
pub mod pattern;
pub mod poison;
pub mod random;
pub mod record;
pub mod segment;
pub mod words;
