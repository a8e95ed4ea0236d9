//! Memory that devices see. It is taken in turn from every region of RAM, from the region's end
//! downwards, so that each region of the machine, and its last page, sees traffic.

use super::boot::Region;
use super::phys::Span;
use super::sync::Spin;
use super::{heap, paging};
use alloc::vec::Vec;

const ONE_MIB: u64 = 1 << 20;
const HEAP_LIMIT: u64 = 512 << 20;

struct Pool {
    base: u64,
    end: u64,
}

struct Pools {
    pools: Vec<Pool>,
    turn: usize,
}

static POOLS: Spin<Pools> = Spin::new(Pools {
    pools: Vec::new(),
    turn: 0,
});

/// Divides RAM: the heap behind the guest's image, the rest for devices.
pub fn start(ram: &[Region], image_end: u64) {
    let home = ram
        .iter()
        .find(|region| (region.base..region.base + region.length).contains(&image_end));
    let Some(home) = home else {
        panic!("no RAM behind the image")
    };
    let home_end = home.base + home.length;
    let heap_end = image_end + ((home_end - image_end) / 2).min(HEAP_LIMIT);
    // SAFETY: RAM below 4 GiB behind the image, mapped at link time; the pools start after it.
    unsafe { heap::start(image_end, heap_end) };
    let mut pools = Vec::new();
    for region in ram.iter().filter(|region| region.base >= ONE_MIB) {
        let end = (region.base + region.length) & !0xfff;
        let base = if region.base == home.base {
            heap_end
        } else {
            region.base
        }
        .next_multiple_of(4096);
        if end > base {
            paging::map(base, end - base);
            pools.push(Pool { base, end });
        }
    }
    POOLS.lock().pools = pools;
}

/// The number of regions that `allocate` takes turns on, and what is left in all of them, in bytes.
pub fn left() -> (usize, u64) {
    let pools = POOLS.lock();
    (
        pools.pools.len(),
        pools.pools.iter().map(|pool| pool.end - pool.base).sum(),
    )
}

/// Zeroed memory of this length, aligned to `align` (a power of two), for good.
pub fn allocate(length: u64, align: u64) -> Span {
    let mut pools = POOLS.lock();
    for _ in 0..pools.pools.len() {
        pools.turn = (pools.turn + 1) % pools.pools.len();
        let turn = pools.turn;
        let pool = &mut pools.pools[turn];
        let start = pool
            .end
            .checked_sub(length)
            .map(|start| start & !(align - 1));
        if let Some(start) = start.filter(|start| *start >= pool.base) {
            pool.end = start;
            // SAFETY: mapped RAM, handed out once.
            let span = unsafe { Span::new(start, length) };
            span.fill(0);
            return span;
        }
    }
    panic!("{length} bytes for a device do not fit in memory")
}
