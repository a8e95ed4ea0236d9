//! A network card: a tap, or a stream socket, behind virtio-net queues.
//!
//! - [`header`]: the header before every frame, and what is allowed in one;
//! - [`command`]: commands of the control queue, understood;
//! - [`features`]: what a card offers;
//! - [`filter`]: which frames the driver wants to receive;
//! - [`stock`]: receive buffers that wait for frames;
//! - [`tap`] and [`peer`]: the two things that can be behind a card;
//! - [`outside`]: what a supervisor has to do with of them;
//! - [`rx`], [`tx`], [`control`]: the three kinds of queue;
//! - [`card`], [`device`]: all of it together, and as the runtime's `Device`;
//! - [`kernel`]: which Linux this is;
//! - [`waiter`]: how a queue waits for a socket;
//! - [`link`], [`counters`]: what a card tells the driver and the user;
//! - [`cli`]: the command line.
//!
//! Sockets of front-ends, rings and indices are the runtime's.
#![deny(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

pub mod card;
pub mod cli;
pub mod command;
pub mod control;
pub mod counters;
pub mod device;
pub mod features;
pub mod filter;
pub mod header;
pub mod kernel;
pub mod link;
pub mod outside;
pub mod peer;
pub mod rx;
pub mod stock;
pub mod tap;
pub mod tx;
pub mod waiter;
