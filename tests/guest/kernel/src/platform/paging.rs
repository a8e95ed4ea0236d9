//! Identity mapping beyond the first 4 GiB, which entry.s maps: 2 MiB pages, added on demand. The tables
//! are ordinary memory that ring 3 may write, and an entry that was absent needs no flush.

use super::sync::Spin;
use alloc::boxed::Box;

const PRESENT: u64 = 7;
const LARGE: u64 = 0x80;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const LARGE_PAGE: u64 = 2 << 20;
const LINK_TIME: u64 = 4 << 30;

#[repr(C, align(4096))]
struct Table([u64; 512]);

unsafe extern "C" {
    #[link_name = "pml4"]
    static mut PML4: Table;
}

static LOCK: Spin<()> = Spin::new(());

/// Makes `length` bytes at physical `base` accessible at the same address (below 128 TiB).
pub fn map(base: u64, length: u64) {
    let end = base.saturating_add(length).min(1 << 47);
    let mut page = base.max(LINK_TIME) & !(LARGE_PAGE - 1);
    let _one_at_a_time = LOCK.lock();
    while page < end {
        // SAFETY: tables are only reached here, under the lock; addresses in them were put there by us.
        unsafe {
            let directory_pointers = below(&raw mut PML4, page >> 39);
            let directory = below(directory_pointers, page >> 30);
            (*directory).0[(page >> 21) as usize & 511] = page | PRESENT | LARGE;
        }
        page += LARGE_PAGE;
    }
}

/// The table that entry `index` of `table` points to, made if it is absent.
///
/// # Safety
/// `table` is a valid table that nobody else touches now.
unsafe fn below(table: *mut Table, index: u64) -> *mut Table {
    // SAFETY: the caller's promise; the index is masked.
    let entry = unsafe { &mut (*table).0[index as usize & 511] };
    if *entry == 0 {
        *entry = Box::into_raw(Box::new(Table([0; 512]))) as u64 | PRESENT;
    }
    (*entry & ADDRESS) as *mut Table
}
