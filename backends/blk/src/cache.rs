//! The write cache, turned on and off by the driver.
//!
//! ```text
//! on ──► turning off: writes are durable, what came before is synced ──► off
//!  ▲                       └ a sync failed, or took too long ──► on
//!  └───────────────────────────────────────────────────────────────────┘
//! ```
//! A driver that has turned the cache off sends no flush any more, and an
//! application's fsync finds nothing to do: so all that was written before is
//! on stable storage when the cache counts as off, and all that is written
//! meanwhile is when it completes.

use std::fs::File;
use std::io;
use std::sync::Arc;

use outboard_runtime::device::{Change, Preparation};

use crate::disk::Disk;
use crate::durability::Verdict;
use crate::trouble::Deed;

/// Turns the write cache of a disk on or off.
pub(crate) fn set_writeback(disk: &Arc<Disk>, writeback: bool) -> Change {
    match disk.file() {
        Some(file) if !writeback && disk.durability().writeback() => {
            disk.durability().begin_turning_off();
            Change::After(Box::new(TurnOff {
                disk: disk.clone(),
                file: file.clone(),
            }))
        }
        _ => {
            disk.durability().set_writeback(writeback);
            Change::Done
        }
    }
}

/// The sync before the cache is off.
#[derive(Debug)]
struct TurnOff {
    disk: Arc<Disk>,
    file: Arc<File>,
}

impl TurnOff {
    fn sync(&self) -> io::Result<()> {
        let troubles = self.disk.troubles();
        let told = |error: &io::Error| troubles.failed(Deed::SYNC, error);
        self.file.sync_data().inspect_err(told)
    }
}

impl Preparation for TurnOff {
    fn what(&self) -> &'static str {
        "turn the write cache off, it stays on: the sync of the image"
    }

    fn prepare(&mut self) -> io::Result<()> {
        let durability = self.disk.durability();
        let lost = || io::Error::other("a sync has failed, now or earlier");
        let ticket = durability.begin().ok_or_else(lost)?;
        // On an error the ticket is dropped, and remembers.
        self.sync()?;
        let mut verdict = ticket.end();
        while let Verdict::Unsure(before) = verdict {
            self.sync().inspect_err(|_| durability.lose())?;
            verdict = durability.judge(before);
        }
        match verdict {
            Verdict::Durable | Verdict::Unsure(_) => Ok(()),
            Verdict::Lost => Err(lost()),
        }
    }

    fn commit(self: Box<Self>) {
        self.disk.durability().set_writeback(false);
    }
}

impl Drop for TurnOff {
    fn drop(&mut self) {
        self.disk.durability().end_turning_off();
    }
}
