//! Whole VMs, tested from outside: `outboard` is started as a user starts it,
//! and only what a user or another process can see is looked at.
//!
//! - [`products`]: the programs and guests under test, found or built;
//! - [`vm`]: a running `outboard run`: its console, its processes, its end;
//! - [`processes`]: what /proc says: who is there, who holds which memory;
//! - [`image`]: disk images, made for the guest and checked after it;
//! - [`qmp`]: QEMU's control socket;
//! - [`slow_disk`]: a disk that keeps a request for as long as a test wants;
//! - [`storm`]: a VM whose back-end is killed again and again, and what became of it;
//! - [`timeline`]: who said what to whom, and when;
//! - [`network`]: a network of a test's own, and the guest's peer in it.
//!
//! Every wait is for progress and ends when there is none; what stood still is
//! named. How long anything takes as a whole is of no interest: machines are
//! slow, and busy.

pub mod image;
pub mod network;
pub mod processes;
pub mod products;
pub mod qmp;
pub mod slow_disk;
pub mod storm;
pub mod timeline;
pub mod vm;

/// What the bundled guest writes on a disk, from its own source.
#[path = "../../guest/logic/src/pattern.rs"]
pub mod pattern;

/// What each block must hold after the guest's `scenario=storm`, from its own source.
#[path = "../../guest/logic/src/record.rs"]
pub mod record;

use std::fmt::Debug;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long anything may take that takes a moment, or a few seconds at most.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// Looks until `found` answers something, [`PATIENCE`] at most.
///
/// # Errors
/// `what` did not come about in time, or looking failed.
pub fn eventually<T>(what: &str, found: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    while_it_moves(what, || Ok(()), found)
}

/// Looks until `found` answers something, for as long as things get on:
/// `moved` answers something else (so many bytes, a counter) at least once in
/// [`PATIENCE`].
///
/// # Errors
/// `what` did not come about and nothing moved, or looking failed.
pub fn while_it_moves<T, M: PartialEq + Debug>(
    what: &str,
    mut moved: impl FnMut() -> Result<M>,
    mut found: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let mut last = moved()?;
    let mut since = Instant::now();
    loop {
        if let Some(value) = found()? {
            return Ok(value);
        }
        if since.elapsed() > PATIENCE {
            bail!("nothing has moved for {PATIENCE:?} (last: {last:?}), waiting for this: {what}");
        }
        std::thread::sleep(Duration::from_millis(2));
        let now = moved()?;
        if now != last {
            last = now;
            since = Instant::now();
        }
    }
}
