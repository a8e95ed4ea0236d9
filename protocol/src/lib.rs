//! What two processes of Outboard must agree on, and nothing else.
//!
//! - [`wire`]: the framing of vhost-user messages on a socket, with deadlines;
//! - [`descriptors`]: what it means that one cannot be had;
//! - [`devices`]: the table of device kinds and their configuration layouts;
//! - [`launch`]: what a started process receives, and what machine and
//!   supervisor say to each other;
//! - [`tap`]: a tap, opened by one process and used by another;
//! - [`image_blocks`]: the size of a disk image, and its blocks;
//! - [`image_format`]: what is no raw image, and refused by whoever opens it;
//! - [`image_lock`]: who may use a disk image, in the way QEMU says it too;
//! - [`image_writes`]: whether one that is open for writing can be written;
//! - [`counters`]: what a back-end counts, for its supervisor to read;
//! - [`block_device`]: what the kernel says of a block device's queue;
//! - [`inflight`]: the shared region that lets a successor take over requests;
//! - [`kept`]: what a driver has set of a device and will not say again;
//! - [`size`]: a number of bytes as a user writes it, the same everywhere;
//! - [`shared`]: memory of a file that another process can cut.
//!
//! The normative text is `PROTOCOL.md` beside this crate.
#![deny(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

mod aligned;
pub mod block_device;
pub mod counters;
pub mod deadline;
pub mod descriptors;
pub mod devices;
pub mod image_blocks;
pub mod image_format;
pub mod image_lock;
pub mod image_writes;
pub mod inflight;
pub mod kept;
pub mod launch;
#[allow(unsafe_code)]
pub mod shared;
pub mod size;
mod socket;
pub mod tap;
pub mod wire;

pub use deadline::Deadline;
