//! The parts of the bundled guest that need no machine: they are tested on the host.
#![cfg_attr(not(test), no_std)]
#![deny(missing_docs)]

pub mod datagram;
pub mod flow;
pub mod histogram;
pub mod packet;
pub mod pattern;
pub mod poison;
pub mod random;
pub mod segment;
pub mod words;
