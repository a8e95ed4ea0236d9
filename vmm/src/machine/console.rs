//! The serial console: a 16550 between the guest and two descriptors.
//!
//! What the guest sends is written on the vCPU's own thread, outside the lock
//! of the registers, so that a terminal that takes nothing does not stop the
//! other vCPUs' registers. What it receives is read by a thread of its own.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EfdFlags;
use outboard_log::rarely;
use vm_superio::serial::{Serial, SerialEvents};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::bus::Target;
use super::ending::End;
use super::gate::Gate;

/// The serial port.
pub(crate) struct Console {
    registers: Mutex<Serial<Irq, Room, Sent>>,
    interrupt: EventFd,
    room: Room,
    output: File,
    /// Nobody reads what the guest says any more.
    deaf: AtomicBool,
    gate: Arc<Gate>,
    end: Arc<End>,
}

impl Console {
    /// A port that sends to `output`.
    ///
    /// # Errors
    /// Those of eventfd(2).
    pub(crate) fn new(output: File, gate: Arc<Gate>) -> io::Result<Self> {
        let interrupt = EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let room = nix::sys::eventfd::EventFd::from_value_and_flags(0, flags)?;
        let room = Room(Arc::new(room));
        let registers = Serial::with_events(
            Irq(interrupt.try_clone()?),
            room.clone(),
            Sent(Vec::with_capacity(1)),
        );
        Ok(Self {
            registers: Mutex::new(registers),
            interrupt,
            room,
            output,
            deaf: AtomicBool::new(false),
            end: Arc::clone(gate.end()),
            gate,
        })
    }

    /// Its interrupt, to be bound as an irqfd.
    pub(crate) fn interrupt(&self) -> &EventFd {
        &self.interrupt
    }

    fn registers(&self) -> MutexGuard<'_, Serial<Irq, Room, Sent>> {
        self.registers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what the guest sent, however long that takes, unless the run
    /// ends before.
    fn put(&self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.deaf.load(Ordering::Relaxed) {
            self.room_or_aside();
            match (&self.output).write(bytes) {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The flag belongs to whoever shares the terminal with us.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let _ = wait(&self.end, self.output.as_fd(), PollFlags::POLLOUT);
                }
                // Whoever read it has gone, as `head` does.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    self.deaf.store(true, Ordering::Relaxed);
                }
                // There may be room again.
                Err(error) => {
                    rarely!(
                        warn,
                        "the console cannot be written, a piece is lost: {error}"
                    );
                    return;
                }
            }
            if self.end.get().is_some() {
                return;
            }
        }
    }

    /// Where the VM is to be paused and the output takes nothing: waits for that
    /// aside, since it may take something much later, or never. A kick ends the
    /// write that waits already.
    fn room_or_aside(&self) {
        let output = self.output.as_fd();
        let has_room = || {
            let mut fds = [PollFd::new(output, PollFlags::POLLOUT)];
            poll(&mut fds, PollTimeout::ZERO) != Ok(0)
        };
        if self.gate.is_closed() && !has_room() {
            let _ = self
                .gate
                .aside(|| wait(&self.end, output, PollFlags::POLLOUT));
        }
    }

    /// Passes on what is typed until the run or the input ends. Escapes are the
    /// supervisor's, which reads a terminal itself.
    pub(crate) fn listen(&self, mut input: File) {
        let mut typed = [0; 64];
        while self.end.get().is_none() {
            let waiting = wait(&self.end, input.as_fd(), PollFlags::POLLIN);
            match waiting.and_then(|()| input.read(&mut typed)) {
                Ok(0) => return,
                Ok(count) => self.receive(typed.get(..count).unwrap_or_default()),
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                    ) => {}
                // The terminal has gone; the guest goes on.
                Err(_) => return,
            }
        }
    }

    /// Hands bytes to the guest as it makes room for them.
    fn receive(&self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.end.get().is_none() {
            let taken = self.registers().enqueue_raw_bytes(bytes);
            match taken {
                // In loop-back mode the line is cut.
                Ok(0) => return,
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(vm_superio::serial::Error::FullFifo) => {
                    let _ = wait(&self.end, self.room.0.as_fd(), PollFlags::POLLIN);
                    let _ = self.room.0.read();
                }
                Err(_) => return,
            }
        }
    }
}

impl Target for Console {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut registers = self.registers();
        for (offset, byte) in (offset..).zip(data) {
            *byte = registers.read(offset as u8);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut registers = self.registers();
        for (offset, byte) in (offset..).zip(data) {
            // The one error is an eventfd that cannot be written: an interrupt
            // is then already waiting.
            let _ = registers.write(offset as u8, *byte);
        }
        let sent = std::mem::take(&mut registers.writer_mut().0);
        drop(registers);
        self.put(&sent);
    }
}

/// Waits for a descriptor, or for the end of the run.
fn wait(end: &End, fd: BorrowedFd<'_>, what: PollFlags) -> io::Result<()> {
    let mut fds = [
        PollFd::new(end.as_fd(), PollFlags::POLLIN),
        PollFd::new(fd, what),
    ];
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) if end.get().is_some() => Err(io::ErrorKind::Interrupted.into()),
        Ok(_) => Ok(()),
        Err(Errno::EINTR) => Err(io::ErrorKind::Interrupted.into()),
        Err(errno) => Err(errno.into()),
    }
}

/// The port's interrupt.
struct Irq(EventFd);

impl vm_superio::Trigger for Irq {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Tells that the guest has read all that it was given.
#[derive(Clone)]
struct Room(Arc<nix::sys::eventfd::EventFd>);

impl SerialEvents for Room {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        // A full counter has told it already.
        let _ = self.0.write(1);
    }
}

/// What the guest has sent and nobody has written yet.
struct Sent(Vec<u8>);

impl Write for Sent {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::thread;

    use outboard_protocol::launch::Ending;

    use super::*;
    use crate::machine::threads::Threads;

    fn gate() -> Arc<Gate> {
        let end = Arc::new(End::new().unwrap());
        Arc::new(Gate::new(1, &end).unwrap())
    }

    fn port() -> (Arc<Console>, UnixStream, Arc<End>) {
        let gate = gate();
        let end = Arc::clone(gate.end());
        let (ours, theirs) = UnixStream::pair().unwrap();
        let output = File::from(OwnedFd::from(theirs));
        let console = Console::new(output, gate).unwrap();
        (Arc::new(console), ours, end)
    }

    #[test]
    fn what_the_guest_sends_comes_out() {
        let (console, mut out, _) = port();
        for byte in b"hello" {
            console.write(0, &[*byte]);
        }
        let mut bytes = [0; 5];
        out.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"hello");
    }

    #[test]
    fn a_guest_that_reads_slowly_gets_every_byte_in_order() {
        let (console, _out, end) = port();
        let (input, mut typist) = UnixStream::pair().unwrap();
        let mut threads = Threads::new(&end).unwrap();
        let listener = Arc::clone(&console);
        let input = File::from(OwnedFd::from(input));
        threads
            .start("listen".into(), move || listener.listen(input))
            .unwrap();
        let text: Vec<u8> = (0..1000u32).map(|n| b'a' + (n % 26) as u8).collect();
        let sent = text.clone();
        let typist = thread::spawn(move || typist.write_all(&sent));
        let mut got = Vec::new();
        while got.len() < text.len() {
            let mut status = [0];
            console.read(5, &mut status);
            if status[0] & 1 != 0 {
                let mut byte = [0];
                console.read(0, &mut byte);
                got.push(byte[0]);
            } else {
                thread::yield_now();
            }
        }
        assert_eq!(got, text);
        typist.join().unwrap().unwrap();
        end.set(Ending::Stopped);
        threads.stop().unwrap();
    }

    #[test]
    fn a_terminal_that_takes_nothing_does_not_hold_up_the_end() {
        let (console, _out, end) = port();
        let mut threads = Threads::new(&end).unwrap();
        let sender = Arc::clone(&console);
        let ended = Arc::clone(&end);
        let work = move || {
            while ended.get().is_none() {
                sender.write(0, b"x");
            }
        };
        threads.start("send".into(), work).unwrap();
        // Long enough, usually, for the socket to be full; either way it ends.
        thread::sleep(std::time::Duration::from_millis(100));
        // The registers still answer.
        console.read(5, &mut [0]);
        end.set(Ending::Stopped);
        threads.stop().unwrap();
    }

    #[test]
    fn an_output_that_is_full_is_written_again_when_there_is_room() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut console = Console::new(full, gate()).unwrap();
        console.write(0, b"x");
        let (ours, theirs) = UnixStream::pair().unwrap();
        console.output = File::from(OwnedFd::from(theirs));
        console.write(0, b"y");
        let (mut out, mut byte) = (ours, [0]);
        out.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"y");
    }

    #[test]
    fn an_output_that_has_gone_is_forgotten() {
        let (console, out, _) = port();
        drop(out);
        console.write(0, b"x");
        console.write(0, b"y");
        assert!(console.deaf.load(Ordering::Relaxed));
    }
}
