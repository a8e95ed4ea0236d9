use std::io::Write;
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use nix::poll::PollFlags;
use outboard_protocol::Deadline;
use outboard_protocol::launch::{Doorbell, KickPath};
use vm_memory::{Bytes, GuestAddress};

use super::super::boot::tests::elf;
use super::super::threads::KICK_AGAIN;
use super::*;

const COUNTER: u64 = 0x30_0000;

/// A kernel that counts, in guest memory, for ever, and never leaves KVM by itself.
fn counting() -> Vec<u8> {
    const ENTRY: u32 = 0x20_0000;
    // inc dword [COUNTER]; jmp to it.
    let mut code = vec![0xff, 0x05];
    code.extend((COUNTER as u32).to_le_bytes());
    code.extend([0xeb, 0xf8]);
    let mut kernel = elf(ENTRY.into(), 16, Some(ENTRY));
    let at = kernel.windows(16).position(|at| *at == [0x90; 16]).unwrap();
    kernel[at..at + code.len()].copy_from_slice(&code);
    kernel
}

/// A machine whose guest counts, on the first of four vCPUs.
fn machine() -> Option<Machine> {
    let Ok(kvm) = File::options().read(true).write(true).open("/dev/kvm") else {
        eprintln!("SKIP: no /dev/kvm");
        return None;
    };
    let mut kernel = tempfile::tempfile().unwrap();
    kernel.write_all(&counting()).unwrap();
    let spec = Spec {
        cpus: 4,
        memory: 16 << 20,
        hugepages: false,
        prefault: false,
        doorbell: Doorbell::Mmio,
        kick_path: KickPath::Kvm,
        kernel: "vmlinuz".into(),
        cmdline: "test".into(),
    };
    let fds = [
        (StartFd::Kvm, kvm.into()),
        (StartFd::Kernel, kernel.into()),
        (StartFd::ConsoleOut, tempfile::tempfile().unwrap().into()),
    ];
    Some(Machine::build(&spec, &[], fds.into()).unwrap())
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

/// Kicks, as the main loop does, until every vCPU is away.
fn pause(machine: &Machine, threads: &Threads) {
    machine.gate().close();
    let soon = soon();
    while !machine.gate().all_are_away() {
        assert!(!soon.passed(), "a vCPU does not come to the gate");
        threads.kick();
        let _ = Deadline::after(KICK_AGAIN).wait_for(machine.gate().as_fd(), PollFlags::POLLIN);
    }
}

#[test]
fn a_guest_that_counts_stands_still_in_a_pause_and_goes_on_after_it() {
    let Some(mut machine) = machine() else {
        return;
    };
    let ram = Arc::clone(&machine.world.ram);
    let count = || ram.guest().read_obj::<u32>(GuestAddress(COUNTER)).unwrap();
    let counts_on = || {
        let (before, soon) = (count(), soon());
        while count() == before {
            assert!(!soon.passed(), "the guest does not run");
            thread::yield_now();
        }
    };
    let threads = machine.start().unwrap();
    for _ in 0..20 {
        counts_on();
        pause(&machine, &threads);
        let stands = count();
        // Kicks that come late change nothing.
        threads.kick();
        thread::sleep(Duration::from_millis(5));
        assert_eq!(count(), stands, "the guest runs in a pause");
        machine.gate().open();
    }
    // Nor does it run while it is told to stop in a pause.
    pause(&machine, &threads);
    let stands = count();
    machine.end().set(Ending::Stopped);
    threads.stop().unwrap();
    assert_eq!(count(), stands);
}

#[test]
fn a_pause_before_the_start_holds_the_first_instruction_back() {
    let Some(mut machine) = machine() else {
        return;
    };
    let ram = Arc::clone(&machine.world.ram);
    let count = || ram.guest().read_obj::<u32>(GuestAddress(COUNTER)).unwrap();
    machine.gate().close();
    let threads = machine.start().unwrap();
    pause(&machine, &threads);
    assert_eq!(count(), 0);
    machine.gate().open();
    let soon = soon();
    while count() == 0 {
        assert!(!soon.passed(), "the guest does not run");
        thread::yield_now();
    }
    machine.end().set(Ending::Stopped);
    threads.stop().unwrap();
}
