//! Outboard: a thin VMM for Linux/KVM without devices on board.
//!
//! - [`supervisor`]: the parent, which opens, starts, watches and ends;
//! - [`machine`]: the process that holds the guest;
//! - [`ctl`]: asks a VM that runs, from outside;
//! - [`cli`], [`exit`]: what the user gives and gets.

#![deny(unsafe_code, clippy::indexing_slicing)]

pub mod cli;
pub mod ctl;
pub mod exit;
pub mod machine;
pub mod supervisor;
