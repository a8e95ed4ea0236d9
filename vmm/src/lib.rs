//! Outboard: a thin VMM for Linux/KVM without devices on board.
//!
//! - [`supervisor`]: the parent, which opens, starts, watches and ends;
//! - [`machine`]: the process that holds the guest;
//! - [`cli`], [`exit`]: what the user gives and gets.

pub mod cli;
pub mod exit;
pub mod machine;
pub mod supervisor;
