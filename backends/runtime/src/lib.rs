//! The part that every back-end shares: session, rings, event loop, inflight
//! region, command line. A device sees none of it ([`device`]).
//!
//! - [`program`]: a back-end's command line and its whole life;
//! - [`listen`], [`activation`], [`inherited`]: where its front-ends come from;
//! - [`supervisor`], [`page`], [`pulse`]: what its supervisor tells it, hears of it and
//!   reads;
//! - [`outside`]: the half of it that is its own supervisor, when it was started by hand;
//! - [`signals`]: what ends it;
//! - [`session`]: one vhost-user connection;
//! - [`memory`]: the guest memory that a session is lent;
//! - [`replay`]: what it does with requests that a predecessor had taken;
//! - [`worker`]: the thread that serves one ring;
//! - [`device`], [`notifier`]: what a device sees;
//! - [`guest_buffers`]: buffers of chains as the kernel takes them.
//!
//! Rings and chains are of a crate of their own, [`outboard_ring`].

#![deny(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

pub mod activation;
pub mod device;
pub mod event;
pub mod guest_buffers;
pub mod inherited;
mod kernel;
pub mod listen;
pub mod manual;
pub mod memory;
pub mod notifier;
pub mod outside;
pub mod page;
mod polling;
pub mod program;
pub mod pulse;
pub mod replay;
pub mod session;
pub mod signals;
pub mod supervisor;
pub mod worker;

pub use device::{Change, Device, Done, Memory, Outcome, Preparation, Queue};
pub use notifier::Notifier;
pub use outboard_ring::chain::{self, Buffer, Chain};
pub use supervisor::{News, Supervisor};
