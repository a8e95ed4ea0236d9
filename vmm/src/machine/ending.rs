//! How a run ends: the first reason that any thread gives, and the ports by
//! which the guest itself gives one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;

use nix::sys::eventfd::{EfdFlags, EventFd};
use outboard_protocol::launch::Ending;

use super::bus::Target;

/// The reason for which the run ends, once there is one.
#[derive(Debug)]
pub(crate) struct End {
    reason: OnceLock<Ending>,
    event: EventFd,
}

impl End {
    /// None yet.
    ///
    /// # Errors
    /// Those of eventfd(2).
    pub(crate) fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self {
            reason: OnceLock::new(),
            event: EventFd::from_value_and_flags(0, flags)?,
        })
    }

    /// Ends the run. Only the first reason counts.
    pub(crate) fn set(&self, reason: Ending) {
        if self.reason.set(reason).is_ok() {
            // The counter is 0 or 1: a write to it cannot fail or wait.
            let _ = self.event.write(1);
        }
    }

    /// The reason, if there is one.
    pub(crate) fn get(&self) -> Option<&Ending> {
        self.reason.get()
    }
}

/// Readable once there is a reason, and for ever after.
impl AsFd for End {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// ACPI sleep type of the soft-off state, as `_S5` names it.
pub(crate) const SLEEP_TYPE_S5: u8 = 5;
/// What a guest writes to the reset register.
pub(crate) const RESET_VALUE: u8 = 1;
/// Offsets within [`super::layout::ACPI_PORTS`].
pub(crate) const SLEEP_CONTROL: u64 = 0;
/// Reads as 0: the guest never wakes, because it never sleeps.
pub(crate) const SLEEP_STATUS: u64 = 1;
/// Takes [`RESET_VALUE`].
pub(crate) const RESET: u64 = 2;

/// The sleep and reset registers (ACPI 6.5, sections 4.8.3.7 and 4.8.3.6).
pub(crate) struct AcpiPorts(pub(crate) std::sync::Arc<End>);

impl Target for AcpiPorts {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        // SLP_EN is bit 5, SLP_TYP bits 2 to 4.
        const SLEEP_S5: u8 = 1 << 5 | SLEEP_TYPE_S5 << 2;
        const SLEEP_BITS: u8 = 0b0011_1100;
        match (offset, data.first()) {
            (SLEEP_CONTROL, Some(value)) if value & SLEEP_BITS == SLEEP_S5 => {
                self.0.set(Ending::PowerOff);
            }
            (RESET, Some(&RESET_VALUE)) => self.0.set(Ending::Reset),
            _ => {}
        }
    }
}

/// The keyboard controller's command port, of which only the reset is left.
/// Kernels that distrust ACPI look for it there.
pub(crate) struct KeyboardController(pub(crate) std::sync::Arc<End>);

impl KeyboardController {
    /// Its port.
    pub(crate) const PORT: u64 = 0x64;
}

impl Target for KeyboardController {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        // Ready for a command.
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        const PULSE_RESET: u8 = 0xfe;
        if data.first() == Some(&PULSE_RESET) {
            self.0.set(Ending::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    fn after(write: impl Fn(&Arc<End>)) -> Option<Ending> {
        let end = Arc::new(End::new().unwrap());
        write(&end);
        let mut fds = [PollFd::new(end.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut fds, PollTimeout::ZERO).unwrap();
        assert_eq!(ready == 1, end.get().is_some());
        end.get().cloned()
    }

    #[test]
    fn a_guest_powers_itself_off_by_sleep_type_5_and_nothing_else() {
        let sleep = |value: u8| after(|end| AcpiPorts(end.clone()).write(SLEEP_CONTROL, &[value]));
        assert_eq!(sleep(0x34), Some(Ending::PowerOff));
        for other in [0, 0x14, 0x20, 0x24, 0x3c, 0x80] {
            assert_eq!(sleep(other), None, "{other:#x}");
        }
        assert_eq!(
            after(|end| AcpiPorts(end.clone()).write(SLEEP_STATUS, &[0x34])),
            None
        );
    }

    #[test]
    fn a_guest_resets_by_either_register() {
        let acpi = |value: u8| after(|end| AcpiPorts(end.clone()).write(RESET, &[value]));
        let keyboard = |value: u8| after(|end| KeyboardController(end.clone()).write(0, &[value]));
        assert_eq!(acpi(RESET_VALUE), Some(Ending::Reset));
        assert_eq!(acpi(0), None);
        assert_eq!(keyboard(0xfe), Some(Ending::Reset));
        assert_eq!(keyboard(0xf0), None);
    }

    #[test]
    fn the_first_reason_counts() {
        let first = after(|end| {
            end.set(Ending::TripleFault);
            end.set(Ending::PowerOff);
        });
        assert_eq!(first, Some(Ending::TripleFault));
    }
}
