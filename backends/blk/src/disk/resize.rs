//! The size of a disk: that of its image when a session begins, and during sessions what
//! the supervisor says.

use outboard_log::Rarely;
use outboard_protocol::image_blocks;

use super::Disk;

/// What is said of an image whose size is not that of a disk.
static UNUSABLE: Rarely = Rarely::new();

impl Disk {
    /// Asks for the size of the image anew, when a session begins. There are no queues
    /// meanwhile.
    ///
    /// There is nobody to refuse to, so the disk is what there is: the whole
    /// blocks of an odd size, and none of an empty image, until the next
    /// session.
    pub(super) fn measure(&self) {
        let Some(size) = self.image_size() else {
            return;
        };
        let whole = self.whole_blocks(size);
        let (before, now) = self.capacity.found(whole);
        if now != before {
            log::info!("the disk image has changed its size from {before} to {now} bytes");
        }
        let block = self.limits.block_size;
        if (whole != size || whole == 0)
            && let Some(times) = UNUSABLE.again()
        {
            log::warn!(
                "the disk image has {size} bytes now, which is not a multiple of {block} and more \
                 than 0: the disk has {whole} until the next front-end; make the image longer \
                 (`truncate -s %{block}`, or to a size) and connect again{times}"
            );
        }
    }

    /// The supervisor says that the disk is to have `told` bytes: it has the whole blocks
    /// of that from now on, and the driver hears of it. It keeps its size where that
    /// would be nothing, or more than there is of its image.
    ///
    /// The supervisor is answered when nothing beyond the end is under way any more
    /// ([`crate::capacity`]). A process that waits takes the size of the image when it
    /// takes over.
    pub(super) fn resize(&self, told: u64) {
        if self.capacity.waits() {
            return;
        }
        let size = self.image_size();
        let whole = self.whole_blocks(told);
        let fits = whole > 0 && size.is_some_and(|size| whole <= size);
        let before = self.capacity.change(fits.then_some(whole));
        if !fits {
            let size = size.map_or("no known size".into(), |size| format!("{size} bytes"));
            log::warn!(
                "the disk keeps its {before} bytes: it was to have {told} bytes, and its image \
                 has {size}"
            );
        } else if whole != before {
            log::info!("the disk has {whole} bytes now, and had {before}");
            if let Some(notifier) = self.notifier.get() {
                notifier.config_changed();
            }
        }
    }

    /// So many bytes without those that are no whole block.
    fn whole_blocks(&self, size: u64) -> u64 {
        let odd = size.checked_rem(self.limits.block_size.into());
        size.saturating_sub(odd.unwrap_or(0))
    }

    /// The size of the image as it is now; `None` where there is none, or it cannot be
    /// found out, which is said.
    fn image_size(&self) -> Option<u64> {
        let size = image_blocks::size(self.file.as_ref()?);
        let told = size.inspect_err(|error| {
            if let Some(times) = UNUSABLE.again() {
                let before = self.capacity.get();
                log::warn!(
                    "cannot find out the size of the disk image: {error}; \
                     the disk keeps its {before} bytes{times}"
                );
            }
        });
        told.ok()
    }
}
