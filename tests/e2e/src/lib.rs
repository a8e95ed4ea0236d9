//! Whole VMs, tested from outside: `outboard` is started as a user starts it,
//! and only what a user or another process can see is looked at.
//!
//! - [`products`]: the programs and guests under test, found or built;
//! - [`vm`]: a running `outboard run`: its console, its processes, its end;
//! - [`processes`]: what /proc says: who is there, who holds which memory;
//! - [`image`]: disk images, made for the guest and checked after it;
//! - [`network`]: a network of a test's own, and the guest's peer in it.
//!
//! Every wait has a deadline. It is generous, for slow and busy machines, and
//! none is a measurement.

pub mod image;
pub mod network;
pub mod processes;
pub mod products;
pub mod vm;

/// What the bundled guest writes on a disk, from its own source.
#[path = "../../guest/logic/src/pattern.rs"]
pub mod pattern;

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long anything may take that takes a moment.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Looks until `found` answers something, [`PATIENCE`] at most.
///
/// # Errors
/// `what` did not come about in time, or looking failed.
pub fn eventually<T>(what: &str, mut found: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = found()? {
            return Ok(value);
        }
        if Instant::now() > end {
            bail!("did not come about within {PATIENCE:?}: {what}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
