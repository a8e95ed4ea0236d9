//! What driver and device tell each other while both run: a few words, and the
//! order in which each side writes one and reads another (virtio 1.3, sections
//! 2.7.6 to 2.7.10).
//!
//! The order is the ring's part, the words are another's: [`View`] has them in
//! guest memory, and the tests have them, and the fences between, in a model of
//! the processor, which tries every outcome that the orders written here allow.
//! What may be lost for want of a fence is thus found without luck, by the code
//! that the product runs.
//!
//! [`View`]: crate::view::View

use std::sync::atomic::Ordering;

use virtio_bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};

use crate::broken::Broken;

/// A word that one side writes and the other reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Word {
    /// The driver's flags.
    AvailFlags,
    /// The driver's index.
    AvailIdx,
    /// The driver's element at a position, a free-running index.
    AvailHead(u16),
    /// The driver's wish for a call (EVENT_IDX).
    UsedEvent,
    /// The device's flags.
    UsedFlags,
    /// The device's index.
    UsedIdx,
    /// The device's wish for a kick (EVENT_IDX).
    AvailEvent,
}

/// The words of one ring, accessed atomically.
pub trait Words {
    /// Reads a word.
    ///
    /// # Errors
    /// [`Broken::Unreachable`] when it is not in memory, here and below.
    fn load(&self, word: Word, order: Ordering) -> Result<u16, Broken>;

    /// Writes a word.
    ///
    /// # Errors
    /// See [`Self::load`].
    fn store(&self, word: Word, value: u16, order: Ordering) -> Result<(), Broken>;

    /// Writes an element that the driver does not look at yet.
    ///
    /// # Errors
    /// See [`Self::load`].
    fn set_used(&self, position: u16, head: u16, length: u32) -> Result<(), Broken>;

    /// The driver's index: where it will put the next head.
    ///
    /// # Errors
    /// See [`Self::load`].
    fn avail_idx(&self) -> Result<u16, Broken> {
        self.load(Word::AvailIdx, Ordering::Acquire)
    }

    /// The head at a position of the available ring.
    ///
    /// # Errors
    /// See [`Self::load`].
    fn avail_head(&self, position: u16) -> Result<u16, Broken> {
        self.load(Word::AvailHead(position), Ordering::Relaxed)
    }

    /// Whether the driver asked for no call (without EVENT_IDX).
    ///
    /// # Errors
    /// See [`Self::load`].
    fn calls_suppressed(&self) -> Result<bool, Broken> {
        let flags = self.load(Word::AvailFlags, Ordering::Relaxed)?;
        Ok(u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT != 0)
    }

    /// The used index after which the driver wants a call (EVENT_IDX).
    ///
    /// # Errors
    /// See [`Self::load`].
    fn used_event(&self) -> Result<u16, Broken> {
        self.load(Word::UsedEvent, Ordering::Relaxed)
    }

    /// The device's index as it stands in memory.
    ///
    /// # Errors
    /// See [`Self::load`].
    fn used_idx(&self) -> Result<u16, Broken> {
        self.load(Word::UsedIdx, Ordering::Acquire)
    }

    /// Gives the driver every element before `index`.
    ///
    /// # Errors
    /// See [`Self::load`].
    fn set_used_idx(&self, index: u16) -> Result<(), Broken> {
        self.store(Word::UsedIdx, index, Ordering::Release)
    }

    /// Asks for kicks, or for none (without EVENT_IDX).
    ///
    /// # Errors
    /// See [`Self::load`].
    fn suppress_kicks(&self, suppress: bool) -> Result<(), Broken> {
        let flags = if suppress {
            VRING_USED_F_NO_NOTIFY as u16
        } else {
            0
        };
        self.store(Word::UsedFlags, flags, Ordering::Relaxed)
    }

    /// The available index after which the device wants a kick (EVENT_IDX).
    ///
    /// # Errors
    /// See [`Self::load`].
    fn set_avail_event(&self, index: u16) -> Result<(), Broken> {
        self.store(Word::AvailEvent, index, Ordering::Relaxed)
    }
}
