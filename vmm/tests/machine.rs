//! The machine process as its supervisor sees it, with guests of a few bytes.
//!
//! Without /dev/kvm the tests that need it are skipped, loudly.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use outboard_protocol::Deadline;
use outboard_protocol::launch::{self, Channel, Ending, FromMachine, StartFd, ToMachine};

/// Code that is the same in 32-bit and in 64-bit mode: writes '!' to the
/// serial port.
const SAY: &[u8] = &[0x66, 0xba, 0xf8, 0x03, 0xb0, b'!', 0xee];
/// Writes sleep type 5 to the sleep control register.
const POWER_OFF: &[u8] = &[0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee];
/// Writes to the reset register.
const RESET: &[u8] = &[0x66, 0xba, 0x02, 0x06, 0xb0, 0x01, 0xee];
/// Jumps to where a PC's firmware resets the machine: mov eax, 0xffff0; jmp eax.
const JUMP_TO_RESET: &[u8] = &[0xb8, 0xf0, 0xff, 0x0f, 0x00, 0xff, 0xe0];
/// Without an interrupt table an undefined instruction is a triple fault.
const CRASH: &[u8] = &[0x0f, 0x0b];
/// Jumps to itself.
const SPIN: &[u8] = &[0xeb, 0xfe];
/// Halts, for ever.
const HALT: &[u8] = &[0xf4, 0xeb, 0xfd];

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

/// Whether there is a KVM to test with.
fn kvm() -> Option<File> {
    let kvm = File::options().read(true).write(true).open("/dev/kvm");
    if let Err(error) = &kvm {
        eprintln!("SKIP: /dev/kvm: {error}");
    }
    kvm.ok()
}

/// An ELF file with `code` at 2 MiB, entered by PVH or by its ELF entry.
fn elf(pvh: bool, code: &[u8]) -> Vec<u8> {
    const ADDRESS: u64 = 0x20_0000;
    let headers: u16 = if pvh { 2 } else { 1 };
    let body = 64 + 56 * u64::from(headers);
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(16, 0);
    for half in [2u16, 62] {
        bytes.extend(half.to_le_bytes());
    }
    bytes.extend(1u32.to_le_bytes());
    for long in [ADDRESS, 64, 0] {
        bytes.extend(long.to_le_bytes());
    }
    bytes.extend(0u32.to_le_bytes());
    for half in [64u16, 56, headers, 0, 0, 0] {
        bytes.extend(half.to_le_bytes());
    }
    let mut header = |kind: u32, offset: u64, size: u64| {
        bytes.extend(kind.to_le_bytes());
        bytes.extend(7u32.to_le_bytes());
        for long in [offset, ADDRESS, ADDRESS, size, size, 4] {
            bytes.extend(long.to_le_bytes());
        }
    };
    let size = code.len() as u64;
    header(1, body, size);
    if pvh {
        header(4, body + size, 20);
    }
    bytes.extend(code);
    for word in [4, 4, 18, u32::from_le_bytes(*b"Xen\0"), ADDRESS as u32] {
        bytes.extend(u32::to_le_bytes(word));
    }
    bytes
}

/// A bzImage with `code` at its 64-bit entry.
fn bzimage(code: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 1024 + 0x200];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0x1f1, &[1]);
    put(0x1fe, &[0x55, 0xaa]);
    put(0x202, b"HdrS");
    put(0x206, &0x20fu16.to_le_bytes());
    put(0x211, &[1]);
    put(0x214, &0x10_0000u32.to_le_bytes());
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x236, &1u16.to_le_bytes());
    put(0x238, &2047u32.to_le_bytes());
    put(0x258, &0x20_0000u64.to_le_bytes());
    put(0x260, &0x1_0000u32.to_le_bytes());
    bytes.extend(code);
    bytes
}

fn spec(cpus: u8, mib: u64) -> launch::Machine {
    launch::Machine {
        cpus,
        memory: mib << 20,
        hugepages: false,
        prefault: false,
        doorbell: launch::Doorbell::Mmio,
        kick_path: launch::KickPath::Kvm,
        kernel: "vmlinuz".into(),
        cmdline: "test".into(),
    }
}

/// A machine in a thread of this process, and its supervisor's view.
struct Machine {
    channel: Option<Channel>,
    console: UnixStream,
    thread: JoinHandle<ExitCode>,
}

impl Machine {
    fn start(kvm: File, spec: launch::Machine, kernel: &[u8]) -> Self {
        Self::start_version(kvm, spec, kernel, launch::MESSAGES_VERSION)
    }

    fn start_version(kvm: File, machine: launch::Machine, kernel: &[u8], version: u32) -> Self {
        let (ours, theirs) = Channel::pair().unwrap();
        let thread = thread::spawn(move || outboard::machine::run(OwnedFd::from(theirs)));
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(kernel).unwrap();
        let (console, output) = UnixStream::pair().unwrap();
        let start = ToMachine::Start {
            version,
            machine,
            devices: Vec::new(),
            fds: vec![StartFd::Kvm, StartFd::Kernel, StartFd::ConsoleOut],
        };
        let fds = [kvm.as_fd(), file.as_fd(), output.as_fd()];
        ours.send(&start, &fds, soon()).unwrap();
        Self {
            channel: Some(ours),
            console,
            thread,
        }
    }

    /// What it tells next, but for what drivers agree on.
    fn hear(&self) -> Option<FromMachine> {
        let channel = self.channel.as_ref().unwrap();
        loop {
            match channel.recv(soon()).unwrap()?.0 {
                FromMachine::Agreed { .. } => {}
                message => return Some(message),
            }
        }
    }

    fn tell(&self, message: &ToMachine) {
        let channel = self.channel.as_ref().unwrap();
        channel.send(message, &[], soon()).unwrap();
    }

    /// Pauses it, and waits until it is.
    fn pause(&self) {
        self.tell(&ToMachine::Pause);
        assert_eq!(self.hear(), Some(FromMachine::Paused));
    }

    fn resume(&self) {
        self.tell(&ToMachine::Resume);
        assert_eq!(self.hear(), Some(FromMachine::Resumed));
    }

    fn running(&self) {
        let heard = self.hear();
        assert_eq!(heard, Some(FromMachine::Running));
    }

    /// Waits until the guest has said its '!'.
    fn heard_guest(&mut self) {
        let mut byte = [0];
        self.console.read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"!");
    }

    fn ending(self) -> Ending {
        let ending = match self.hear() {
            Some(FromMachine::Ended { ending }) => ending,
            other => panic!("{other:?}"),
        };
        self.thread.join().unwrap();
        ending
    }

    fn failure(self) -> String {
        match self.hear() {
            Some(FromMachine::Failed { error }) => error,
            other => panic!("{other:?}"),
        }
    }
}

fn code(pieces: &[&[u8]]) -> Vec<u8> {
    pieces.concat()
}

#[test]
fn every_kind_of_kernel_is_entered_and_powers_itself_off() {
    let program = code(&[SAY, POWER_OFF, SPIN]);
    for kernel in [elf(true, &program), elf(false, &program), bzimage(&program)] {
        for cpus in [1, 2, 4] {
            let Some(kvm) = kvm() else { return };
            let mut machine = Machine::start(kvm, spec(cpus, 16), &kernel);
            machine.running();
            machine.heard_guest();
            assert_eq!(machine.ending(), Ending::PowerOff);
        }
    }
}

#[test]
fn memory_beyond_the_hole_is_there() {
    let Some(kvm) = kvm() else { return };
    let kernel = elf(true, &code(&[SAY, POWER_OFF, SPIN]));
    let mut machine = Machine::start(kvm, spec(2, 5 << 10), &kernel);
    machine.running();
    machine.heard_guest();
    assert_eq!(machine.ending(), Ending::PowerOff);
}

#[test]
fn a_reset_and_a_triple_fault_are_told_apart() {
    for (last, expected) in [
        (RESET, Ending::Reset),
        (JUMP_TO_RESET, Ending::Reset),
        (CRASH, Ending::TripleFault),
    ] {
        let Some(kvm) = kvm() else { return };
        let machine = Machine::start(kvm, spec(1, 16), &elf(true, &code(&[last, SPIN])));
        machine.running();
        assert_eq!(machine.ending(), expected);
    }
}

#[test]
fn a_guest_that_kvm_gives_up_on_is_described() {
    if outboard::machine::kvm::host_has_hardware_virtualization() {
        eprintln!("SKIP: this processor runs every instruction itself");
        return;
    }
    let Some(kvm) = kvm() else { return };
    // A software KVM does not emulate `int 0x80` in ring 0.
    let machine = Machine::start(kvm, spec(1, 16), &elf(true, &[0x90, 0xcd, 0x80]));
    machine.running();
    match machine.ending() {
        Ending::KvmError { detail } => {
            for part in ["rip=0000000000200001", "cd 80", "cr0=", "scripts/linux"] {
                assert!(detail.contains(part), "{part}: {detail}");
            }
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_guest_that_spins_or_halts_is_stopped_when_it_is_asked_for() {
    for last in [SPIN, HALT] {
        let Some(kvm) = kvm() else { return };
        let mut machine = Machine::start(kvm, spec(4, 16), &elf(true, &code(&[SAY, last])));
        machine.running();
        machine.heard_guest();
        let channel = machine.channel.as_ref().unwrap();
        channel.send(&ToMachine::Stop, &[], soon()).unwrap();
        assert_eq!(machine.ending(), Ending::Stopped);
    }
}

#[test]
fn a_guest_that_spins_or_halts_is_paused_as_often_as_it_is_asked_for() {
    for last in [SPIN, HALT] {
        let Some(kvm) = kvm() else { return };
        let mut machine = Machine::start(kvm, spec(4, 16), &elf(true, &code(&[SAY, last])));
        machine.running();
        machine.heard_guest();
        for _ in 0..20 {
            machine.pause();
            machine.resume();
        }
        // A second one is answered again, and so is a resume of what runs.
        machine.pause();
        machine.pause();
        machine.resume();
        machine.resume();
        // A paused one stops as it is told to.
        machine.pause();
        machine.tell(&ToMachine::Stop);
        assert_eq!(machine.ending(), Ending::Stopped);
    }
}

#[test]
fn a_pause_that_is_called_off_at_once_is_not_answered_after_the_resume() {
    let Some(kvm) = kvm() else { return };
    let mut machine = Machine::start(kvm, spec(4, 16), &elf(true, &code(&[SAY, SPIN])));
    machine.running();
    machine.heard_guest();
    for _ in 0..50 {
        machine.tell(&ToMachine::Pause);
        machine.tell(&ToMachine::Resume);
        match machine.hear() {
            Some(FromMachine::Resumed) => {}
            Some(FromMachine::Paused) => {
                assert_eq!(machine.hear(), Some(FromMachine::Resumed));
            }
            other => panic!("{other:?}"),
        }
    }
    machine.tell(&ToMachine::Stop);
    assert_eq!(machine.ending(), Ending::Stopped);
}

#[test]
fn a_machine_whose_supervisor_has_gone_ends_in_a_pause_too() {
    let Some(kvm) = kvm() else { return };
    let mut machine = Machine::start(kvm, spec(2, 16), &elf(true, &code(&[SAY, SPIN])));
    machine.running();
    machine.heard_guest();
    machine.pause();
    machine.channel = None;
    machine.thread.join().unwrap();
}

/// What the console brings before it has been silent for a while.
fn said_until_silence(console: &mut UnixStream) -> Vec<u8> {
    let (mut said, soon) = (Vec::new(), soon());
    let silence = Some(Duration::from_millis(200));
    console.set_read_timeout(silence).unwrap();
    let mut piece = [0; 4096];
    while let Ok(count) = console.read(&mut piece) {
        assert!(!soon.passed(), "the guest never stops speaking");
        said.extend(&piece[..count]);
    }
    console.set_read_timeout(None).unwrap();
    said
}

/// A guest that writes to a console that nobody reads is in a write(2): that is not
/// waited for, what it was writing comes out, and nothing more.
#[test]
fn a_guest_that_floods_its_console_is_paused_and_no_byte_of_it_is_lost() {
    // mov dx, 0x3f8; out dx, al; inc al; jmp to the out
    let flood = [0x66, 0xba, 0xf8, 0x03, 0xee, 0xfe, 0xc0, 0xeb, 0xfb];
    let Some(kvm) = kvm() else { return };
    let mut machine = Machine::start(kvm, spec(1, 16), &elf(true, &flood));
    machine.running();
    let mut first = [0];
    machine.console.read_exact(&mut first).unwrap();
    let mut next = first[0].wrapping_add(1);
    for is_full in [false, true, false, true] {
        if is_full {
            // Long enough, usually, for the socket to be full.
            thread::sleep(Duration::from_millis(300));
        }
        machine.pause();
        for byte in said_until_silence(&mut machine.console) {
            assert_eq!(byte, next);
            next = next.wrapping_add(1);
        }
        machine.resume();
        let mut byte = [0];
        machine.console.read_exact(&mut byte).unwrap();
        assert_eq!(byte[0], next);
        next = next.wrapping_add(1);
    }
    machine.tell(&ToMachine::Stop);
    assert_eq!(machine.ending(), Ending::Stopped);
}

#[test]
fn an_attach_of_a_device_that_is_not_there_is_refused_and_the_guest_runs_on() {
    let Some(kvm) = kvm() else { return };
    let machine = Machine::start(kvm, spec(1, 16), &elf(true, &code(&[SPIN])));
    machine.running();
    let channel = machine.channel.as_ref().unwrap();
    for session in [7, 8] {
        let attach = ToMachine::Attach {
            device: "disk9".into(),
            session,
            asked: false,
            whose: launch::Whose::Own,
            restored: launch::Restored::Nothing,
        };
        let (theirs, _ours) = UnixStream::pair().unwrap();
        channel.send(&attach, &[theirs.as_fd()], soon()).unwrap();
        let refused = FromMachine::Lost {
            device: "disk9".into(),
            session,
            cause: launch::Cause::DoesNotFit,
            text: "this machine has no device disk9".into(),
        };
        assert_eq!(machine.hear(), Some(refused));
    }
    channel.send(&ToMachine::Stop, &[], soon()).unwrap();
    assert_eq!(machine.ending(), Ending::Stopped);
}

#[test]
fn a_machine_whose_supervisor_has_gone_ends() {
    let Some(kvm) = kvm() else { return };
    let mut machine = Machine::start(kvm, spec(2, 16), &elf(true, &code(&[SAY, SPIN])));
    machine.running();
    machine.heard_guest();
    machine.channel = None;
    machine.thread.join().unwrap();
}

#[test]
fn a_string_instruction_writes_every_byte() {
    // mov esi, text; mov ecx, 5; mov dx, 0x3f8; cld; rep outsb
    let start = 0x20_0000u32;
    let mut program = vec![0xbe, 0, 0, 0, 0, 0xb9, 5, 0, 0, 0];
    program.extend([0x66, 0xba, 0xf8, 0x03, 0xfc, 0xf3, 0x6e]);
    program.extend(code(&[POWER_OFF, SPIN]));
    let text = start + program.len() as u32;
    program[1..5].copy_from_slice(&text.to_le_bytes());
    program.extend(b"hello");
    let Some(kvm) = kvm() else { return };
    let mut machine = Machine::start(kvm, spec(1, 16), &elf(true, &program));
    machine.running();
    let mut said = [0; 5];
    machine.console.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"hello");
    assert_eq!(machine.ending(), Ending::PowerOff);
}

#[test]
fn what_nothing_answers_reads_as_ones() {
    // mov dx, 0x80; in al, dx; mov dx, 0x3f8; out dx, al; then a byte from
    // 0xd000_0000, in the PCI window.
    let mut program = vec![0x66, 0xba, 0x80, 0, 0xec, 0x66, 0xba, 0xf8, 0x03, 0xee];
    program.extend([0xb0, 0, 0xbb, 0, 0, 0, 0xd0, 0x8a, 0x03, 0xee]);
    program.extend(code(&[POWER_OFF, SPIN]));
    let Some(kvm) = kvm() else { return };
    let mut machine = Machine::start(kvm, spec(1, 16), &elf(true, &program));
    machine.running();
    let mut said = [0; 2];
    machine.console.read_exact(&mut said).unwrap();
    assert_eq!(said, [0xff, 0xff]);
    assert_eq!(machine.ending(), Ending::PowerOff);
}

#[test]
fn what_cannot_be_built_is_said() {
    const OURS: u32 = launch::MESSAGES_VERSION;
    let program = code(&[POWER_OFF, SPIN]);
    let failure = |spec, kernel: &[u8], version| {
        let kvm = kvm()?;
        Some(Machine::start_version(kvm, spec, kernel, version).failure())
    };
    let kernel = elf(true, &program);
    let cases = [
        (spec(1, 16), kernel.clone(), 999, "version 999"),
        (spec(0, 16), kernel.clone(), OURS, "vCPUs"),
        (spec(33, 16), kernel.clone(), OURS, "vCPUs"),
        (spec(1, 0), kernel.clone(), OURS, "guest memory"),
        (spec(1, 16), b"nonsense".to_vec(), OURS, "not a kernel"),
    ];
    for (spec, kernel, version, expected) in cases {
        let Some(said) = failure(spec, &kernel, version) else {
            return;
        };
        assert!(said.contains(expected), "{expected}: {said}");
    }
    let null = File::open("/dev/null").unwrap();
    let said = Machine::start(null, spec(1, 16), &kernel).failure();
    assert!(said.contains("not KVM"), "{said}");
}
