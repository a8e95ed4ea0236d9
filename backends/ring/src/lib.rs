//! A split ring and its chains, as a device sees them in guest memory: no
//! session and no thread, nothing that waits.
//!
//! ```text
//! words (one word of a ring, with its order) ◄── view (a ring in guest memory)
//!   ▲                                             │
//!   └── split (Ring: taken, completed, published) ─┴─► chain (Chain) ──► memory
//! ```
//! - [`split`]: the device's side of one ring, by value;
//! - [`words`], [`view`]: what of it both sides touch, and where that lies;
//! - [`chain`]: descriptors, read once;
//! - [`memory`]: the guest memory that all of this lies in;
//! - [`broken`]: why a ring is given up; [`counters`]: what happened on it.

#![deny(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

pub mod broken;
pub mod chain;
pub mod counters;
pub mod memory;
pub mod split;
pub mod view;
pub mod words;

pub use broken::Broken;
pub use chain::{Buffer, Chain, Taken};
pub use counters::Tally;
pub use memory::Memory;
pub use split::Ring;
pub use view::{Layout, View};
pub use words::{Word, Words};
