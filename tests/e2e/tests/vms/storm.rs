//! A back-end that is killed again and again under a guest that checks every
//! block and every completion: none is lost, none comes twice.
//!
//! Each storm's seed is new, and said; `OUTBOARD_STORM_SEED` repeats one.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use outboard_e2e::storm::killer::Blow;
use outboard_e2e::storm::step::{Led, Stand};
use outboard_e2e::storm::{self, FrontEnd, KILLS_OF_A_VM, Outcome, Pace, Programs, Shape, Storm};

use crate::{KVM, Need, Test, test};

const DIRECT: &[Need] = &[Need::Kvm, Need::DirectIo];
const QEMU: &[Need] = &[Need::Kvm, Need::Program("qemu-system-x86_64")];
/// Bytes in a block of the guest's.
const BLOCK: usize = 4096;

pub fn tests() -> Vec<Test> {
    vec![
        test(
            "a storm finds what is lost and torn and misplaced",
            KVM,
            a_storm_finds_damage,
        ),
        test("nothing is wrong where nobody is killed", KVM, || {
            calm("", "")
        }),
        test("nothing is wrong past the page cache", DIRECT, || {
            calm(",direct", "")
        }),
        test(
            "reads that overlap writes see one or the other",
            KVM,
            || calm("", "overlap=1 reset_ms=70"),
        ),
        test("nothing is wrong after 50 kills", KVM, || {
            killed(&Shape::new(50, seed()))
        }),
        test(
            "nothing is wrong after 20 kills past the page cache",
            DIRECT,
            || {
                let mut shape = Shape::new(20, seed()).disk(",direct");
                shape.folder = std::env::temp_dir();
                killed(&shape)
            },
        ),
        test(
            "nothing is wrong after kills of a back-end with threads",
            KVM,
            || killed(&Shape::new(20, seed()).options("--engine=threads")),
        ),
        test("nothing is wrong after kills between resets", KVM, || {
            killed(&Shape::new(20, seed()).guest("reset_ms=60 overlap=1"))
        }),
        test(
            "a cache that the guest has turned off stays off",
            KVM,
            || killed(&Shape::new(10, seed()).guest("wce=off")),
        ),
        test(
            "nothing is wrong after a successor is killed at each step of its start",
            KVM,
            killed_at_each_step,
        ),
        test("nothing is wrong after hangs", KVM, || struck(&hanging())),
        test("nothing is wrong after hangs between resets", KVM, || {
            struck(&hanging().guest("reset_ms=60 overlap=1"))
        }),
        test("nothing is wrong after restarts by the api", KVM, || {
            struck(&Shape {
                blow: Blow::Restart,
                ..Shape::new(5, seed())
            })
        }),
        test("nothing is wrong after kills under qemu", QEMU, || {
            under_qemu("", "")
        }),
        test(
            "nothing is wrong after kills under qemu with threads",
            QEMU,
            || under_qemu("--engine=threads", "overlap=1"),
        ),
    ]
}

/// A seed that nobody has chosen.
pub fn seed() -> u64 {
    let chosen = std::env::var("OUTBOARD_STORM_SEED");
    let chosen = chosen.ok().and_then(|text| text.parse().ok());
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    chosen.unwrap_or_else(|| u64::from(now.unwrap_or_default().subsec_nanos()))
}

fn storm(shape: &Shape) -> Result<Outcome> {
    storm::run(&Programs::get()?, shape)?.nothing_is_wrong()
}

/// A storm without kills: what the guest and the checks do by themselves.
fn calm(disk: &str, guest: &str) -> Result<()> {
    let mut shape = Shape::new(0, seed()).disk(disk).guest(guest);
    if disk.contains("direct") {
        shape.folder = std::env::temp_dir();
    }
    let outcome = storm(&shape)?;
    ensure!(
        outcome.result.number("requests")? > 1000,
        "{}",
        outcome.ended
    );
    Ok(())
}

/// What a bad back-end could do to the image, this test does behind the back of
/// a sound one: the guest, which checks by its own record, must tell.
fn a_storm_finds_damage() -> Result<()> {
    const BLOCKS: usize = 64;
    let shape = Shape::new(0, seed()).guest("");
    let mut storm = Storm::begin(&Programs::get()?, &shape)?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(storm.image.path())?;
    let place = |block: usize| (block * BLOCK) as u64;
    let mut old = vec![0; BLOCKS * BLOCK];
    file.read_exact_at(&mut old, place(0))?;
    let mut others = vec![0; BLOCKS * BLOCK];
    file.read_exact_at(&mut others, place(1000))?;
    let mut flipped = vec![0; BLOCKS * BLOCK];
    // Each of them is written again meanwhile, most of them several times.
    for _ in 0..20 {
        storm.vm.console_line("progress")?;
    }
    file.write_all_at(&old, place(0))?;
    file.write_all_at(&others, place(2000))?;
    file.read_exact_at(&mut flipped, place(3000))?;
    for block in flipped.chunks_exact_mut(BLOCK) {
        block
            .iter_mut()
            .skip(2000)
            .take(1)
            .for_each(|byte| *byte ^= 1);
    }
    file.write_all_at(&flipped, place(3000))?;
    let outcome = storm.end()?;
    for name in ["lost", "torn", "misplaced"] {
        let count = outcome.result.number(name)?;
        ensure!(count > 0, "not found: {name}: {}", outcome.ended);
    }
    ensure!(outcome.result.word("result")? == "fail");
    ensure!(outcome.nothing_is_wrong().is_err());
    Ok(())
}

/// Storms with kills, so many in all.
fn killed(shape: &Shape) -> Result<()> {
    for shape in shape.vms() {
        let outcome = storm(&shape)?;
        ensure!(outcome.kills.len() == shape.kills as usize);
        ensure!(
            outcome.result.number("requests")? > 1000,
            "{}",
            outcome.ended
        );
    }
    Ok(())
}

/// From its first system call on, each successor is killed some steps later
/// than the last one, until one of them serves.
fn killed_at_each_step() -> Result<()> {
    const STRIDE: u32 = 9;
    let mut steps = 1;
    for vm in 0.. {
        if !killed_from_step(&mut steps, STRIDE, seed().wrapping_add(vm))? {
            break;
        }
    }
    ensure!(steps > 10 * STRIDE, "a start of {steps} steps");
    Ok(())
}

/// As many successors as a VM is to lose. Whether each of them died in its start.
fn killed_from_step(steps: &mut u32, stride: u32, seed: u64) -> Result<bool> {
    let stops = r#"[ ! -e "$0.stop" ] || kill -STOP $$"#;
    let mut shape = Shape::new(0, seed);
    shape.before = Some((stops.into(), String::new()));
    let mut storm = Storm::begin(&Programs::get()?, &shape)?;
    let stop = storm.image.directory().join("blk.stop");
    std::fs::write(&stop, "")?;
    let mut last = storm.killer.next(&mut storm.vm, None)?;
    storm.killer.strike(last, Signal::SIGKILL)?;
    let mut died = true;
    for kill in 1..=KILLS_OF_A_VM {
        let pid = storm.killer.next(&mut storm.vm, Some(last))?;
        let mut led = Led::take(pid)?;
        let stand = match kill {
            KILLS_OF_A_VM => Stand::Waits,
            _ => led.go(*steps)?,
        };
        match stand {
            Stand::Stopped => led.kill()?,
            Stand::Gone => bail!("{pid} ended by itself: {}", storm.vm.messages()),
            Stand::Waits => {
                std::fs::remove_file(&stop)?;
                led.let_go()?;
                died = kill == KILLS_OF_A_VM;
                break;
            }
        }
        last = pid;
        *steps += stride;
    }
    storm.killer.until_it_goes_on(&mut storm.vm)?;
    let outcome = storm.end()?.nothing_is_wrong();
    outcome.with_context(|| format!("seed {seed}, up to step {steps}"))?;
    Ok(died)
}

/// QEMU has the inflight region and reconnects, once a second; the back-end
/// makes its recovery exact.
///
/// The guest does not reset the device meanwhile: QEMU 7.2.22, which first learns
/// of the loss while it stops the device for a reset, never sets up the device
/// again. It does reconnect, but then sends neither GET_FEATURES nor a memory
/// table (1 in 8 runs on a busy machine, resets every 150 ms; its trace shows it).
fn under_qemu(backend: &str, guest: &str) -> Result<()> {
    let mut shape = Shape::new(5, seed()).disk(backend).guest(guest);
    (shape.front_end, shape.pace) = (FrontEnd::Qemu, Pace::OneByOne);
    killed(&shape)
}

/// Each back-end is struck with something else than SIGKILL, once the guest has gone on.
fn struck(shape: &Shape) -> Result<()> {
    killed(&Shape {
        pace: Pace::OneByOne,
        ..shape.clone()
    })
}

fn hanging() -> Shape {
    Shape {
        blow: Blow::Signal(Signal::SIGSTOP),
        ..Shape::new(5, seed()).disk(",hang-timeout=300ms")
    }
}
