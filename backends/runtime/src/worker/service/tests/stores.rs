//! Memory that a back-end shares, and what it is after each store to it.
//!
//! One file, which the code under test maps as it likes. While a run is watched,
//! those mappings can only be read: the first instruction that would write there
//! stops at SIGSEGV, is let through alone (by the trap flag), and what the file has
//! become is noted at the SIGTRAP that follows. So what is noted is what the process
//! had stored if it was killed then, whoever stored it, and by the code that the
//! compiler made of it.
//!
//! ```text
//! read-only ──SIGSEGV──► the page may be written, one step ──SIGTRAP──► noted, read-only
//! ```
#![allow(
    unsafe_code,
    reason = "page protection, and what the kernel says of it"
)]

use std::fs;
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use libc::{c_int, c_void, siginfo_t};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

const PAGE: usize = 4096;
/// Bytes of the file.
pub const SIZE: usize = 5 * PAGE;
/// What of it is looked at, and all that is used.
pub const PARTS: [Range<usize>; 5] = [
    0..64,
    PAGE..PAGE + 16,
    2 * PAGE..2 * PAGE + 40,
    3 * PAGE..3 * PAGE + 24,
    4 * PAGE..4 * PAGE + 192,
];
const BYTES: usize = 64 + 16 + 40 + 24 + 192;
/// Most stores of a run.
const MOST: usize = 4096;
/// The processor stops after the next instruction (Intel SDM, vol. 3, 18.3.1.4).
const TRAP_FLAG: i64 = 0x100;

/// The memory at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Image([u8; BYTES]);

impl Image {
    /// Bytes that were at this place of the file.
    pub fn bytes<const N: usize>(&self, place: usize) -> [u8; N] {
        let mut before = 0;
        for part in PARTS {
            if part.contains(&place) {
                let at = before + place - part.start;
                return self.0[at..at + N].try_into().unwrap();
            }
            before += part.len();
        }
        panic!("nobody looks at {place:#x}");
    }

    pub fn u16(&self, place: usize) -> u16 {
        u16::from_le_bytes(self.bytes(place))
    }
}

/// What the handlers of the two signals know.
struct Trap {
    /// The mappings that are watched.
    ranges: Vec<Range<usize>>,
    /// The page that may be written for one instruction; 0: none.
    open: usize,
    /// The file, to be read at any time.
    file: *const u8,
    noted: Vec<Image>,
}

/// That of the run that is watched, if there is one.
static TRAP: AtomicPtr<Trap> = AtomicPtr::new(ptr::null_mut());
/// One run at a time in a process.
static ONE: Mutex<()> = Mutex::new(());

/// The file, and a mapping of it that is never watched.
pub struct Stores {
    file: FileOffset,
    own: MmapRegion<()>,
    name: String,
    /// Whose mappings are watched, between two runs.
    trap: Mutex<Option<Box<Trap>>>,
}

// SAFETY: as of the mapping that its pointer goes to.
unsafe impl Send for Trap {}

/// Lets no other test of this process watch anything meanwhile.
pub fn alone() -> MutexGuard<'static, ()> {
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stores {
    /// All zeroes.
    pub fn new() -> Self {
        let name = "outboard-crash-points".to_owned();
        let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
        let file = nix::sys::memfd::memfd_create(name.as_str(), flags).unwrap();
        let file = fs::File::from(file);
        file.set_len(SIZE as u64).unwrap();
        let file = FileOffset::new(file, 0);
        Self {
            own: MmapRegion::from_file(file.clone(), SIZE).unwrap(),
            file,
            name,
            trap: Mutex::new(None),
        }
    }

    pub fn file(&self) -> &FileOffset {
        &self.file
    }

    /// Writes past all watching: what somebody else has written.
    pub fn write(&self, place: usize, bytes: &[u8]) {
        self.own
            .as_volatile_slice()
            .write_slice(bytes, place)
            .unwrap();
    }

    pub fn read(&self) -> Image {
        image(self.own.as_ptr())
    }

    /// Makes it as it was.
    pub fn restore(&self, image: &Image) {
        let mut from = &image.0[..];
        for part in PARTS {
            let (bytes, rest) = from.split_at(part.len());
            self.write(part.start, bytes);
            from = rest;
        }
    }

    /// Watches all mappings of the file that there are by now, but its own.
    pub fn watch(&self) {
        let own = self.own.as_ptr() as usize;
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let range = |line: &str| {
            let (start, end) = line.split_once(' ')?.0.split_once('-')?;
            let hex = |text| usize::from_str_radix(text, 16).ok();
            Some(hex(start)?..hex(end)?)
        };
        let lines = maps.lines().filter(|line| line.contains(&self.name));
        let ranges = lines.filter_map(range).filter(|range| range.start != own);
        *self.trap.lock().unwrap() = Some(Box::new(Trap {
            ranges: ranges.collect(),
            open: 0,
            file: self.own.as_ptr(),
            noted: Vec::with_capacity(MOST),
        }));
        install();
    }

    /// Runs this; returns also what the memory was after each store.
    pub fn noted<T>(&self, run: impl FnOnce() -> T) -> (T, Vec<Image>) {
        let trap = Box::into_raw(self.trap.lock().unwrap().take().unwrap());
        // SAFETY: a box's; before the run nobody else uses it.
        protect(unsafe { &(*trap).ranges }, libc::PROT_READ);
        TRAP.store(trap, Ordering::SeqCst);
        let end = End(trap);
        let value = run();
        drop(end);
        // SAFETY: a box's, and after the run nobody else uses it.
        let mut trap = unsafe { Box::from_raw(trap) };
        let noted: Vec<_> = trap.noted.drain(..).collect();
        assert!(noted.len() < MOST, "more stores than there is room for");
        *self.trap.lock().unwrap() = Some(trap);
        (value, noted)
    }

    /// Notes what the memory is: somebody else has written.
    pub fn note(&self) {
        // SAFETY: of the run on this thread, in no handler.
        if let Some(trap) = unsafe { TRAP.load(Ordering::SeqCst).as_mut() } {
            trap.noted.push(image(trap.file));
        }
    }
}

/// The end of a run, also of one that panics.
struct End(*mut Trap);

impl Drop for End {
    fn drop(&mut self) {
        TRAP.store(ptr::null_mut(), Ordering::SeqCst);
        // SAFETY: the handlers do not have it any more.
        protect(
            unsafe { &(*self.0).ranges },
            libc::PROT_READ | libc::PROT_WRITE,
        );
    }
}

fn protect(ranges: &[Range<usize>], access: c_int) {
    for range in ranges {
        // SAFETY: a mapping of the file, whose users write it by volatile accesses.
        let result = unsafe { libc::mprotect(range.start as *mut c_void, range.len(), access) };
        assert_eq!(result, 0, "mprotect");
    }
}

fn image(file: *const u8) -> Image {
    let mut image = Image([0; BYTES]);
    let mut to = 0;
    for part in PARTS {
        // SAFETY: within the mapping, which is as long as its owner; nobody writes
        // meanwhile, since the run is on this thread.
        unsafe {
            ptr::copy_nonoverlapping(file.add(part.start), image.0[to..].as_mut_ptr(), part.len());
        }
        to += part.len();
    }
    image
}

fn install() {
    for (signal, handler) in [
        (libc::SIGSEGV, before_store as extern "C" fn(_, _, _)),
        (libc::SIGTRAP, after_store),
    ] {
        // SAFETY: a handler of this signature, for a signal that this thread causes.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            action.sa_sigaction = handler as usize;
            assert_eq!(
                libc::sigaction(signal, &raw const action, ptr::null_mut()),
                0
            );
        }
    }
}

/// It was none of ours: the next time it ends the process.
fn give_up(signal: c_int) {
    // SAFETY: restores the default.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

extern "C" fn before_store(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel's; the trap is this thread's, which does nothing else.
    let (address, trap, registers) = unsafe {
        let context = context.cast::<libc::ucontext_t>();
        let trap = TRAP.load(Ordering::SeqCst).as_mut();
        (
            (*info).si_addr() as usize,
            trap,
            &mut (*context).uc_mcontext.gregs,
        )
    };
    match trap {
        Some(trap) if trap.ranges.iter().any(|range| range.contains(&address)) => {
            trap.open = address & !(PAGE - 1);
            allow(trap.open, libc::PROT_READ | libc::PROT_WRITE);
            registers[libc::REG_EFL as usize] |= TRAP_FLAG;
        }
        _ => give_up(signal),
    }
}

extern "C" fn after_store(signal: c_int, _: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: as above.
    let (trap, registers) = unsafe {
        let context = context.cast::<libc::ucontext_t>();
        let trap = TRAP.load(Ordering::SeqCst).as_mut();
        (trap, &mut (*context).uc_mcontext.gregs)
    };
    match trap {
        Some(trap) if trap.open != 0 => {
            allow(trap.open, libc::PROT_READ);
            trap.open = 0;
            registers[libc::REG_EFL as usize] &= !TRAP_FLAG;
            if trap.noted.len() < MOST {
                trap.noted.push(image(trap.file));
            }
        }
        _ => give_up(signal),
    }
}

fn allow(page: usize, access: c_int) {
    // SAFETY: a page of a watched mapping.
    unsafe { libc::mprotect(page as *mut c_void, PAGE, access) };
}
