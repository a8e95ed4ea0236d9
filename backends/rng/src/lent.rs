//! The guest memory of a session. The daemon maps it; its files are the
//! front-end's too, which may cut them, so it is guarded
//! (`outboard_protocol::shared`). Once some of it turns out not to be there any
//! more, the session is ended, and nothing is returned to the driver before.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use outboard_protocol::shared::{Alarm, Lost, Place, Watch};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// See the module. Its descriptor is readable when memory has been lost.
#[derive(Debug)]
pub(crate) struct Lent {
    alarm: Arc<Alarm>,
    /// What is guarded, by its address here: kept mapped, it keeps that.
    watched: Mutex<BTreeMap<usize, Watch>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lent {
    /// Without memory.
    ///
    /// # Errors
    /// Those of eventfd(2).
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            alarm: Arc::new(Alarm::new()?),
            watched: Mutex::default(),
        })
    }

    /// Guards this memory, and what there was before no longer.
    ///
    /// # Errors
    /// Those of fstatfs(2) and sigaction(2).
    pub fn watch(&self, memory: &GuestMemoryMmap) -> io::Result<()> {
        let mut watched = locked(&self.watched);
        let mut now = BTreeMap::new();
        for region in memory.iter() {
            let mapping = region.get_mmap();
            let address = mapping.as_ptr() as usize;
            let place = Place::Guest(region.start_addr().0);
            let watch = match watched.remove(&address) {
                Some(watch) => watch,
                None => Watch::new(mapping, place, &self.alarm)?,
            };
            now.insert(address, watch);
        }
        *watched = now;
        Ok(())
    }

    /// What was lost first, if anything was.
    pub fn lost(&self) -> Option<Lost> {
        self.alarm.lost()
    }

    /// The loss is known: the descriptor is not readable for it any more.
    pub fn silence(&self) {
        self.alarm.silence();
    }
}

impl AsFd for Lent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.alarm.as_fd()
    }
}
