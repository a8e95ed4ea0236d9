//! No kick is lost: four vCPUs kick sixteen queues a million times, while the
//! eventfds behind the doorbells are replaced, as each new session does. The
//! doorbells are the product's own; sessions and their back-ends are this
//! test's, and the guest is a few instructions (`outboard-ring3`).
//!
//! A vCPU adds 1 to a word of each of its four queues and kicks it, then waits,
//! outside the guest, until the back-end has been woken by an eventfd of each
//! queue and has seen what it wrote; and a session lasts until it has served
//! what was kicked before its end was decided. So each kick is judged by itself:
//! when nobody has been woken for one, the test names the queue. `OUTBOARD_KICKS`
//! is another number of kicks (`scripts/bench kicks` takes ten million).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use kvm_bindings::kvm_regs;
use kvm_ioctls::{Kvm, VcpuExit};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use outboard::machine::kvm::doorbell::Address;
use outboard::machine::pci::Doorbells;
use outboard_protocol::launch::KickPath;
use outboard_ring3::{DATA, DEVICES, Machine, Program};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const VCPUS: u8 = 4;
const EACH: u16 = 4;
const QUEUES: u16 = EACH * VCPUS as u16;
/// Bytes from one queue's doorbell to the next: notify_off_multiplier.
const STRIDE: u64 = 4;
/// Against hangs alone.
const PATIENCE: Duration = Duration::from_secs(60);

fn kicks() -> u64 {
    let text = std::env::var("OUTBOARD_KICKS");
    text.map_or(1_000_000, |text| text.parse().expect("a number"))
}

fn descriptor(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: it is open for as long as `event` is borrowed.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

/// The back-end of one vCPU's queues: it is handed eventfds, and notes what the
/// queue's word was when it was last woken by one.
struct BackEnd {
    /// Kick eventfds of a new session, by queue.
    handed: Mutex<Vec<(u16, Arc<EventFd>)>>,
    news: EventFd,
    seen: [AtomicU64; EACH as usize],
    waits: Mutex<Option<Thread>>,
}

impl BackEnd {
    fn new() -> Self {
        Self {
            handed: Mutex::default(),
            news: EventFd::new(EFD_NONBLOCK).unwrap(),
            seen: Default::default(),
            waits: Mutex::default(),
        }
    }

    /// Hands it the eventfd of a new session, which ends the one before.
    fn hand(&self, queue: u16, kick: Arc<EventFd>) {
        self.handed.lock().unwrap().push((queue, kick));
        self.news.write(1).unwrap();
    }

    /// Serves until `over`; what woke it is an eventfd and nothing else.
    fn serve(&self, word: impl Fn(u16) -> u64, over: &AtomicBool) {
        let mut kicks: Vec<Option<Arc<EventFd>>> = vec![None; EACH.into()];
        while !over.load(Ordering::Acquire) {
            // A predecessor's eventfd is closed, whatever its count.
            for (queue, kick) in self.handed.lock().unwrap().drain(..) {
                kicks[usize::from(queue)] = Some(kick);
            }
            let readable = |event| PollFd::new(event, PollFlags::POLLIN);
            let news = descriptor(&self.news);
            let mut fds = vec![readable(news)];
            fds.extend(kicks.iter().map(|kick| match kick {
                Some(kick) => readable(descriptor(kick)),
                None => PollFd::new(news, PollFlags::empty()),
            }));
            poll(&mut fds, PollTimeout::try_from(1000).unwrap()).unwrap();
            let woken: Vec<_> = fds.iter().map(|fd| fd.any() == Some(true)).collect();
            if woken[0] {
                let _ = self.news.read();
            }
            for (queue, kick) in (0..EACH).zip(&kicks) {
                let index = usize::from(queue);
                if woken[index + 1] && kick.as_ref().is_some_and(|kick| kick.read().is_ok()) {
                    self.seen[index].store(word(queue), Ordering::Release);
                }
            }
            if let Some(vcpu) = &*self.waits.lock().unwrap() {
                vcpu.unpark();
            }
        }
    }

    /// Waits until every queue has been served at least up to `kicks`.
    fn await_service(&self, kicks: u64) -> Result<(), String> {
        let end = Instant::now() + PATIENCE;
        for (queue, seen) in self.seen.iter().enumerate() {
            while seen.load(Ordering::Acquire) < kicks {
                thread::park_timeout(Duration::from_secs(1));
                if Instant::now() > end {
                    return Err(format!("kick {kicks} of the vCPU's queue {queue} is lost"));
                }
            }
        }
        Ok(())
    }
}

/// What a run came to.
#[derive(Debug, Default)]
struct Tally {
    kicks: AtomicU64,
    replaced: AtomicU64,
    /// Kicks that found no ioeventfd and exited.
    exits: AtomicU64,
    /// Of these, passed on to the session.
    passed_on: AtomicU64,
}

/// Everything that the threads share.
struct Run {
    base: Address,
    machine: Machine,
    doorbells: Doorbells,
    back_ends: Vec<BackEnd>,
    /// Queues whose kick has been passed on: their session begins anew.
    passed_on: Mutex<Vec<u16>>,
    over: AtomicBool,
    tally: Tally,
}

impl Run {
    fn new(kvm: &Kvm, base: Address) -> Self {
        let machine = Machine::new(kvm).unwrap();
        let doorbells =
            Doorbells::new("disk0", Arc::clone(machine.vm()), QUEUES, KickPath::Kvm).unwrap();
        doorbells.place(Some(base));
        Self {
            base,
            machine,
            doorbells,
            back_ends: (0..VCPUS).map(|_| BackEnd::new()).collect(),
            passed_on: Mutex::default(),
            over: AtomicBool::new(false),
            tally: Tally::default(),
        }
    }

    fn words(vcpu: u16) -> u64 {
        DATA + 0x1000 * u64::from(vcpu)
    }

    /// How often a queue of a vCPU has been kicked, or is about to be.
    fn word(&self, vcpu: u16, queue: u16) -> u64 {
        let address = Self::words(vcpu) + 8 * u64::from(queue);
        self.machine.word(address).unwrap()
    }

    /// A vCPU's thread.
    fn kick(&self, vcpu: u8, turns: u64) -> Result<(), String> {
        let offset = u64::from(vcpu) * u64::from(EACH) * STRIDE;
        let (program, place) = match self.base {
            Address::Memory(base) => (Program::memory_kicks(), base + offset),
            Address::Port(base) => (Program::port_kicks(), u64::from(base) + offset),
        };
        let registers = kvm_regs {
            rdi: place,
            rsi: Self::words(vcpu.into()),
            r8: EACH.into(),
            ..Default::default()
        };
        let mut cpu = self.machine.vcpu(vcpu).unwrap();
        cpu.begin(&program, registers).unwrap();
        let back_end = &self.back_ends[usize::from(vcpu)];
        *back_end.waits.lock().unwrap() = Some(thread::current());
        let mut turn = 0;
        while turn < turns && !self.over.load(Ordering::Relaxed) {
            match cpu.run().unwrap() {
                VcpuExit::IoOut(0x10, _) => {
                    turn += 1;
                    self.tally.kicks.fetch_add(EACH.into(), Ordering::Relaxed);
                    let judged = back_end.await_service(turn);
                    self.over.fetch_or(judged.is_err(), Ordering::AcqRel);
                    judged?;
                }
                VcpuExit::MmioWrite(address, _) => self.exited(address),
                VcpuExit::IoOut(port, _) => self.exited(port.into()),
                other => panic!("{other:?}"),
            }
        }
        Ok(())
    }

    /// A kick that found no ioeventfd, as the function of a device treats it.
    fn exited(&self, address: u64) {
        let base = match self.base {
            Address::Memory(base) => base,
            Address::Port(base) => base.into(),
        };
        let queue = u16::try_from((address - base) / STRIDE).unwrap();
        self.tally.exits.fetch_add(1, Ordering::Relaxed);
        if self.doorbells.exited(queue, true) {
            self.passed_on.lock().unwrap().push(queue);
        }
    }

    fn begin_session(&self, queue: u16) {
        let kick = self.doorbells.lend(queue).unwrap();
        self.back_ends[usize::from(queue / EACH)].hand(queue % EACH, kick);
    }

    /// Starts the queues again whose kick was passed on.
    fn make_good(&self) {
        for queue in std::mem::take(&mut *self.passed_on.lock().unwrap()) {
            self.tally.passed_on.fetch_add(1, Ordering::Relaxed);
            self.begin_session(queue);
        }
    }

    /// Waits until the session of a queue has served what was kicked so far:
    /// the next session must not make good what this one has lost.
    fn judge(&self, queue: u16) {
        let (vcpu, queue) = (queue / EACH, queue % EACH);
        let kicked = self.word(vcpu, queue);
        let back_end = &self.back_ends[usize::from(vcpu)];
        let seen = &back_end.seen[usize::from(queue)];
        while seen.load(Ordering::Acquire) < kicked && !self.over.load(Ordering::Acquire) {
            self.make_good();
            thread::sleep(Duration::from_micros(20));
        }
    }

    /// Sessions end and begin, until the vCPUs are done.
    fn replace(&self) {
        for turn in 0u64.. {
            self.make_good();
            if self.over.load(Ordering::Acquire) {
                break;
            }
            match turn % 16 {
                15 => self.move_away_and_back(),
                even if even % 2 == 0 => self.end_and_begin(),
                // In an order that meets each vCPU's in every way.
                _ => {
                    let queue = (turn / 2 * 7 % u64::from(QUEUES)) as u16;
                    self.judge(queue);
                    self.begin_session(queue);
                    self.tally.replaced.fetch_add(1, Ordering::Relaxed);
                }
            }
            thread::sleep(Duration::from_micros(500));
        }
    }

    /// As a back-end does that goes and whose successor comes: kicks exit
    /// meanwhile. KVM takes long for the first release after a registration
    /// alone, so this is also how most eventfds are replaced in the least time.
    fn end_and_begin(&self) {
        (0..QUEUES).for_each(|queue| self.judge(queue));
        (0..QUEUES).for_each(|queue| self.doorbells.withdraw(queue));
        thread::sleep(Duration::from_micros(100));
        (0..QUEUES).for_each(|queue| self.begin_session(queue));
        let queues = u64::from(QUEUES);
        self.tally.replaced.fetch_add(queues, Ordering::Relaxed);
    }

    /// As a driver does that moves the BAR, while others kick.
    fn move_away_and_back(&self) {
        (0..QUEUES).for_each(|queue| self.judge(queue));
        self.doorbells.place(None);
        thread::sleep(Duration::from_micros(100));
        for queue in self.doorbells.place(Some(self.base)) {
            self.begin_session(queue);
        }
    }

    fn to_the_end(&self, kicks: u64) {
        let turns = kicks.div_ceil(QUEUES.into());
        (0..QUEUES).for_each(|queue| self.begin_session(queue));
        thread::scope(|scope| {
            for (vcpu, back_end) in (0..VCPUS).zip(&self.back_ends) {
                let word = move |queue| self.word(vcpu.into(), queue);
                scope.spawn(move || back_end.serve(word, &self.over));
            }
            scope.spawn(|| self.replace());
            let vcpus: Vec<_> = (0..VCPUS)
                .map(|vcpu| scope.spawn(move || self.kick(vcpu, turns)))
                .collect();
            let results: Vec<_> = vcpus.into_iter().map(|vcpu| vcpu.join()).collect();
            self.over.store(true, Ordering::Release);
            for (vcpu, result) in results.into_iter().enumerate() {
                let judged = result.expect("the vCPU's thread ends");
                assert_eq!(judged, Ok(()), "vCPU {vcpu}, {:?}", self.tally);
            }
        });
    }
}

#[test]
fn every_kick_is_served_while_the_eventfds_are_replaced() {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => {
            eprintln!("SKIP: no usable /dev/kvm: {error}");
            return;
        }
    };
    for base in [Address::Memory(DEVICES + 0x3000), Address::Port(0xc000)] {
        let began = Instant::now();
        let run = Run::new(&kvm, base);
        run.to_the_end(kicks() / 2);
        eprintln!("{base:x?}: {:?} in {:?}", run.tally, began.elapsed());
        assert!(run.tally.kicks.load(Ordering::Relaxed) >= kicks() / 2);
        // Otherwise nothing was tried.
        let replaced = run.tally.replaced.load(Ordering::Relaxed);
        assert!(replaced >= QUEUES.into(), "{:?}", run.tally);
        assert!(run.tally.exits.load(Ordering::Relaxed) > 0);
    }
}
