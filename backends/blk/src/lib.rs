//! A disk: an image behind virtio-blk queues.
//!
//! - [`image`]: the file or block device, its size, alignment and lock;
//! - [`profile`]: its own limits, or those that qemu-storage-daemon has too;
//! - [`request`]: a descriptor chain understood as a block request;
//! - [`data`]: what an operation moves: the guest's buffers, or something else;
//! - [`engine`]: how one operation reaches the kernel and comes back;
//! - [`task`]: the operations that make up a request, one after another;
//! - [`durability`]: the write cache, and what a failed sync means;
//! - [`capacity`]: its size while requests are under way, which may shrink;
//! - [`hold`]: requests that have failed and wait to be executed again;
//! - `cache`: the write cache, turned off by the driver;
//! - [`trouble`]: what goes wrong with the image, said and counted;
//! - [`queue`] and [`disk`]: the above as the runtime's `Queue` and `Device`;
//! - [`cli`]: the command line, for the program and for those in the tests that
//!   are the program with one fault.
//!
//! Sockets, rings and indices are the runtime's.
#![deny(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

mod cache;
pub mod capacity;
pub mod cli;
pub mod data;
pub mod disk;
pub mod durability;
pub mod engine;
pub mod hold;
pub mod image;
pub mod profile;
pub mod queue;
pub mod request;
pub mod task;
pub mod trouble;

#[cfg(test)]
mod guest;
