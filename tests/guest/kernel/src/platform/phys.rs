//! Physical memory and device registers. Everything is mapped at its own address, so a `Span` is a
//! checked window on it; accesses are single `mov` instructions, which every KVM can emulate.

use core::arch::asm;
use core::mem::size_of;

/// A value that one `mov` carries.
pub trait Word: Copy {
    /// Reads it.
    ///
    /// # Safety
    /// `address` is mapped.
    unsafe fn load(address: u64) -> Self;
    /// Writes it.
    ///
    /// # Safety
    /// `address` is mapped, and no Rust object of this program lives there.
    unsafe fn store(address: u64, value: Self);
}

macro_rules! word {
    ($type:ty, $class:ident, $load:literal, $store:literal) => {
        impl Word for $type {
            #[inline(always)]
            unsafe fn load(address: u64) -> Self {
                let value: $type;
                // SAFETY: the caller's promise.
                unsafe {
                    asm!($load, out($class) value, in(reg) address, options(nostack, preserves_flags))
                }
                value
            }
            #[inline(always)]
            unsafe fn store(address: u64, value: Self) {
                // SAFETY: the caller's promise.
                unsafe {
                    asm!($store, in($class) value, in(reg) address, options(nostack, preserves_flags))
                }
            }
        }
    };
}
word!(
    u8,
    reg_byte,
    "mov {0}, byte ptr [{1}]",
    "mov byte ptr [{1}], {0}"
);
word!(
    u16,
    reg,
    "mov {0:x}, word ptr [{1}]",
    "mov word ptr [{1}], {0:x}"
);
word!(
    u32,
    reg,
    "mov {0:e}, dword ptr [{1}]",
    "mov dword ptr [{1}], {0:e}"
);
word!(
    u64,
    reg,
    "mov {0}, qword ptr [{1}]",
    "mov qword ptr [{1}], {0}"
);

/// A window on mapped physical addresses that hold no Rust objects: device registers, firmware tables,
/// or memory shared with a device. Copies of it name the same bytes.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    base: u64,
    length: u64,
}

impl Span {
    /// A window of `length` bytes at `base`, which `paging::map` made accessible.
    ///
    /// # Safety
    /// The range is mapped for as long as the window is used, and no Rust object lives in it.
    pub const unsafe fn new(base: u64, length: u64) -> Self {
        Self { base, length }
    }

    /// Its physical address.
    pub fn address(&self) -> u64 {
        self.base
    }

    /// Its size in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// A part of it. A part that is not inside is a bug of the guest's and panics, as all of these do.
    pub fn part(&self, offset: u64, length: u64) -> Span {
        self.check(offset, length);
        Span {
            base: self.base + offset,
            length,
        }
    }

    fn check(&self, offset: u64, length: u64) {
        let inside = offset
            .checked_add(length)
            .is_some_and(|end| end <= self.length);
        assert!(
            inside,
            "{offset:#x}+{length:#x} outside {:#x}+{:#x}",
            self.base, self.length
        );
    }

    /// Reads a word; its address need not be aligned.
    #[inline]
    pub fn read<T: Word>(&self, offset: u64) -> T {
        self.check(offset, size_of::<T>() as u64);
        // SAFETY: inside the window, which is mapped.
        unsafe { T::load(self.base + offset) }
    }

    /// Writes a word; its address need not be aligned.
    #[inline]
    pub fn write<T: Word>(&self, offset: u64, value: T) {
        self.check(offset, size_of::<T>() as u64);
        // SAFETY: inside the window, which is mapped and holds no Rust objects.
        unsafe { T::store(self.base + offset, value) }
    }

    /// Copies bytes out.
    pub fn read_bytes(&self, offset: u64, bytes: &mut [u8]) {
        self.check(offset, bytes.len() as u64);
        // SAFETY: source inside the window, destination is the slice, and windows hold no Rust objects.
        unsafe { copy(bytes.as_mut_ptr() as u64, self.base + offset, bytes.len()) }
    }

    /// Copies 64-bit words out.
    pub fn read_words(&self, offset: u64, words: &mut [u64]) {
        self.check(offset, words.len() as u64 * 8);
        // SAFETY: as for read_bytes; every bit pattern is a u64.
        unsafe {
            copy(
                words.as_mut_ptr() as u64,
                self.base + offset,
                words.len() * 8,
            )
        }
    }

    /// Copies 64-bit words in.
    pub fn write_words(&self, offset: u64, words: &[u64]) {
        self.check(offset, words.len() as u64 * 8);
        // SAFETY: as for read_bytes, the other way round.
        unsafe { copy(self.base + offset, words.as_ptr() as u64, words.len() * 8) }
    }

    /// Its bytes, to be written.
    ///
    /// # Safety
    /// It is memory that `dma` handed out, no device has it, and nobody else has these bytes meanwhile.
    pub unsafe fn bytes_mut<'a>(&self) -> &'a mut [u8] {
        // SAFETY: mapped for good, and the caller's promise.
        unsafe { core::slice::from_raw_parts_mut(self.base as *mut u8, self.length as usize) }
    }

    /// Its bytes, to be read.
    ///
    /// # Safety
    /// As for `bytes_mut`.
    pub unsafe fn bytes<'a>(&self) -> &'a [u8] {
        // SAFETY: mapped for good, and the caller's promise.
        unsafe { core::slice::from_raw_parts(self.base as *const u8, self.length as usize) }
    }

    /// Sets every byte.
    pub fn fill(&self, value: u8) {
        // SAFETY: writes exactly the window.
        unsafe {
            asm!("rep stosb", in("al") value, inout("rdi") self.base => _, inout("rcx") self.length => _,
                options(nostack, preserves_flags));
        }
    }
}

/// # Safety
/// Both ranges are mapped, and the destination may be written.
unsafe fn copy(to: u64, from: u64, length: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") length => _,
            options(nostack, preserves_flags));
    }
}
