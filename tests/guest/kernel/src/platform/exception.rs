//! The end of a guest that went wrong: an exception of the processor's or a panic of its own.

use super::{console, power};
use core::sync::atomic::{AtomicU64, Ordering};

unsafe extern "C" {
    #[link_name = "exception_vector"]
    static VECTOR: AtomicU64;
    #[link_name = "exception_error"]
    static ERROR: AtomicU64;
    #[link_name = "exception_cr2"]
    static CR2: AtomicU64;
    #[link_name = "exception_rip"]
    static RIP: AtomicU64;
}

/// Ring 0's exception stub returns to here, on a stack of its own.
#[unsafe(no_mangle)]
extern "C" fn exception_ring3() -> ! {
    // SAFETY: entry.s defines these words and only its stub writes them.
    let [vector, error, cr2, rip] =
        unsafe { [&VECTOR, &ERROR, &CR2, &RIP].map(|word| word.load(Ordering::Relaxed)) };
    console::print_last_words(format_args!(
        "OUTBOARD panic vector={vector} rip={rip:#x} cr2={cr2:#x} error={error:#x}"
    ));
    power::off()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let place = info
        .location()
        .map_or(("?", 0), |at| (at.file(), at.line()));
    console::print_last_words(format_args!(
        "OUTBOARD panic message=\"{}\" at={}:{}",
        info.message(),
        place.0,
        place.1
    ));
    power::off()
}
