//! Several processors: starting them, and one piece of work for all of them at a time.
//!
//! ```text
//! absent --INIT, start-up IPI--> started --given > done--> working --done = given--> started
//! ```

use super::{apic, percpu, percpu::PerCpu};
use crate::platform::phys::Span;
use crate::platform::sync::Spin;
use crate::platform::{clock, ring0};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

/// The most processors that entry.s has room for in its GDT.
pub const MAX_PROCESSORS: usize = 32;

const TRAMPOLINE: u64 = 0x8000;
const FIRST_TASK_SELECTOR: u64 = 0x30;
const RING0_STACK: usize = 4096;
const RING3_STACK: usize = 64 << 10;
const TASK_SEGMENT: usize = 104 + 8192 + 1;
/// Milliseconds that a processor may take to start.
const START_LIMIT: u64 = 5_000;

unsafe extern "C" {
    #[link_name = "ap_mailbox"]
    static MAILBOX: AtomicU64;
    #[link_name = "gdt"]
    static mut GDT: [u64; 6 + 2 * MAX_PROCESSORS];
    #[link_name = "trampoline_start"]
    static TRAMPOLINE_START: u8;
    #[link_name = "trampoline_end"]
    static TRAMPOLINE_END: u8;
}

static PROCESSORS: [AtomicPtr<PerCpu>; MAX_PROCESSORS] =
    [const { AtomicPtr::new(core::ptr::null_mut()) }; MAX_PROCESSORS];
static RUNNING: AtomicUsize = AtomicUsize::new(0);

/// A piece of work: called on each processor with its index.
type Work = &'static (dyn Fn(usize) + Sync);
static WORK: Spin<Option<Work>> = Spin::new(None);

/// The processor with this index, which must run.
pub fn processor(index: usize) -> &'static PerCpu {
    let pointer = PROCESSORS[index].load(Ordering::Acquire);
    assert!(!pointer.is_null(), "processor {index} does not run");
    // SAFETY: set once, to a leaked allocation.
    unsafe { &*pointer }
}

/// The number of processors that run.
pub fn running() -> usize {
    RUNNING.load(Ordering::Acquire)
}

fn register(cpu: PerCpu) -> &'static PerCpu {
    let cpu: &'static PerCpu = Box::leak(Box::new(cpu));
    PROCESSORS[cpu.index as usize].store(core::ptr::from_ref(cpu).cast_mut(), Ordering::Release);
    cpu
}

/// Makes the booting processor the first one and lets interrupts in.
pub fn start_first() {
    apic::enable();
    register(PerCpu::new(0, apic::id())).install();
    RUNNING.store(1, Ordering::Release);
    ring0::enable_interrupts();
}

/// Starts processors until `wanted` run or all listed ones do.
pub fn start_others(apic_ids: &[u32], wanted: usize) -> Result<(), alloc::string::String> {
    let first = percpu::this().apic_id;
    let wanted = wanted.min(MAX_PROCESSORS);
    if running() < wanted {
        copy_trampoline();
    }
    // Those that run already are the first of the others.
    let others = apic_ids.iter().copied().filter(|id| *id != first);
    for apic_id in others.skip(running() - 1) {
        if running() >= wanted {
            break;
        }
        start_one(running(), apic_id)?;
    }
    Ok(())
}

fn copy_trampoline() {
    let (start, end) = (
        &raw const TRAMPOLINE_START as u64,
        &raw const TRAMPOLINE_END as u64,
    );
    // SAFETY: the page at 0x8000 is conventional memory that nothing of ours uses; the source is code.
    let (to, from) = unsafe {
        (
            Span::new(TRAMPOLINE, end - start),
            Span::new(start, end - start),
        )
    };
    for at in 0..end - start {
        to.write::<u8>(at, from.read(at));
    }
}

fn start_one(index: usize, apic_id: u32) -> Result<(), alloc::string::String> {
    let mut cpu = PerCpu::new(index as u64, apic_id);
    cpu.ring0_stack = stack(RING0_STACK);
    cpu.ring3_stack = stack(RING3_STACK) - 8;
    cpu.task_selector = FIRST_TASK_SELECTOR + 16 * index as u64;
    describe_task_segment(index, task_segment(cpu.ring0_stack));
    let cpu = register(cpu);
    // SAFETY: entry.s defines it, for this.
    unsafe { MAILBOX.store(core::ptr::from_ref(cpu) as u64, Ordering::SeqCst) };
    apic::send_init(apic_id);
    apic::send_startup(apic_id, (TRAMPOLINE >> 12) as u8);
    let begin = clock::now();
    while cpu.started.load(Ordering::Acquire) == 0 {
        if clock::now().wrapping_sub(begin) > START_LIMIT * clock::kilohertz() {
            return Err(alloc::format!(
                "reason=processor-does-not-start apic_id={apic_id}"
            ));
        }
        core::hint::spin_loop();
    }
    RUNNING.store(index + 1, Ordering::Release);
    Ok(())
}

fn stack(size: usize) -> u64 {
    let stack: &'static mut [u128] = Vec::leak(alloc::vec![0u128; size / 16]);
    stack.as_ptr_range().end as u64
}

// A task state segment with its ring 0 stack and an I/O bitmap that allows every port.
fn task_segment(ring0_stack: u64) -> u64 {
    let segment: &'static mut [u32] = Vec::leak(alloc::vec![0u32; TASK_SEGMENT.div_ceil(4)]);
    segment[1] = ring0_stack as u32;
    segment[2] = (ring0_stack >> 32) as u32;
    segment[25] = 104 << 16;
    segment[(TASK_SEGMENT - 1) / 4] = 0xff;
    segment.as_ptr() as u64
}

fn describe_task_segment(index: usize, base: u64) {
    let limit = TASK_SEGMENT as u64 - 1;
    let low = limit | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
    // SAFETY: entry.s reserves two words for each processor, and only the first processor writes them.
    unsafe {
        let gdt = &raw mut GDT;
        (*gdt)[6 + 2 * index] = low;
        (*gdt)[7 + 2 * index] = base >> 32;
    }
}

/// entry.s brings a started processor here.
#[unsafe(no_mangle)]
extern "C" fn ap_ring3(cpu: &'static PerCpu) -> ! {
    apic::enable();
    cpu.install();
    ring0::enable_interrupts();
    cpu.started.store(1, Ordering::Release);
    loop {
        let seen = cpu.events.load(Ordering::Acquire);
        if cpu.given.load(Ordering::Acquire) == cpu.done.load(Ordering::Relaxed) {
            ring0::halt_while(&cpu.events, seen);
            continue;
        }
        let work = *WORK.lock();
        if let Some(work) = work {
            work(cpu.index as usize);
        }
        cpu.done.fetch_add(1, Ordering::Release);
        apic::wake(processor(0).apic_id);
    }
}

/// Runs `work` on the first `count` processors at the same time and waits for all of them. Only the
/// first processor may call it.
pub fn on_each(count: usize, work: &(dyn Fn(usize) + Sync)) {
    let count = count.clamp(1, running());
    // SAFETY: the reference is dropped below, when every processor that was given it is done with it.
    let borrowed = unsafe { core::mem::transmute::<&(dyn Fn(usize) + Sync), Work>(work) };
    *WORK.lock() = Some(borrowed);
    for cpu in (1..count).map(processor) {
        cpu.given.fetch_add(1, Ordering::Release);
        apic::wake(cpu.apic_id);
    }
    work(0);
    let this = processor(0);
    for cpu in (1..count).map(processor) {
        loop {
            let seen = this.events.load(Ordering::Acquire);
            if cpu.done.load(Ordering::Acquire) == cpu.given.load(Ordering::Relaxed) {
                break;
            }
            ring0::halt_while(&this.events, seen);
        }
    }
    *WORK.lock() = None;
}
