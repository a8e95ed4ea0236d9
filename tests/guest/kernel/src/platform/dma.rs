//! Memory that devices see. It is taken in turn from every region of RAM, from the region's end
//! downwards, so that each region of the machine, and its last page, sees traffic.

use super::boot::Region;
use super::phys::Span;
use super::sync::Spin;
use super::{canary, heap, paging};
use alloc::vec::Vec;

const ONE_MIB: u64 = 1 << 20;
/// Poisoned bytes behind each piece, at least.
const GAP: u64 = 64;
const HEAP_LIMIT: u64 = 512 << 20;

struct Pool {
    base: u64,
    end: u64,
    // Where it ended before anything was handed out.
    top: u64,
}

struct Pools {
    pools: Vec<Pool>,
    turn: usize,
    gaps: Vec<Span>,
}

static POOLS: Spin<Pools> = Spin::new(Pools {
    pools: Vec::new(),
    turn: 0,
    gaps: Vec::new(),
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
            pools.push(Pool {
                base,
                end,
                top: end,
            });
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

/// What was not handed out yet.
pub fn unused() -> Vec<Span> {
    let pools = POOLS.lock();
    // SAFETY: mapped memory that is nobody's until it is handed out.
    let span = |pool: &Pool| unsafe { Span::new(pool.base, pool.end - pool.base) };
    pools.pools.iter().map(span).collect()
}

/// What was handed out.
pub fn given() -> Vec<Span> {
    let pools = POOLS.lock();
    // SAFETY: mapped memory; whoever has it is not writing it, says the caller.
    let span = |pool: &Pool| unsafe { Span::new(pool.end, pool.top - pool.end) };
    pools.pools.iter().map(span).collect()
}

/// What lies behind each piece that was handed out, if there are canaries.
pub fn gaps() -> Vec<Span> {
    POOLS.lock().gaps.clone()
}

/// Zeroed memory of this length, aligned to `align` (a power of two), for good.
pub fn allocate(length: u64, align: u64) -> Span {
    let gap = if canary::keep() == 0 { 0 } else { GAP };
    let mut pools = POOLS.lock();
    for _ in 0..pools.pools.len() {
        pools.turn = (pools.turn + 1) % pools.pools.len();
        let turn = pools.turn;
        let pool = &mut pools.pools[turn];
        let start = pool
            .end
            .checked_sub(length + gap)
            .map(|start| start & !(align - 1));
        if let Some(start) = start.filter(|start| *start >= pool.base) {
            let end = core::mem::replace(&mut pool.end, start);
            // SAFETY: mapped RAM, handed out once.
            let span = unsafe { Span::new(start, length) };
            span.fill(0);
            if gap != 0 {
                let behind = start + length;
                // SAFETY: mapped memory between two pieces, nobody's.
                let unused = unsafe { Span::new(behind, end - behind) };
                pools.gaps.push(unused);
            }
            return span;
        }
    }
    panic!("{length} bytes for a device do not fit in memory")
}
