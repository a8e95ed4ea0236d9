//! Outboard against vhost-user programs that others wrote.
//!
//! - [`table`]: what was tried with whom, and what came of it; README's copy;
//! - [`program`]: a peer, or a back-end of ours, as a process;
//! - [`qemu`]: QEMU as a front-end, driven over QMP;
//! - [`guest`]: the Linux guest in there, which does what it is told.
//!
//! Every wait has a deadline, [`outboard_e2e::PATIENCE`]; none is a
//! measurement.

pub mod guest;
pub mod program;
pub mod qemu;
pub mod table;
