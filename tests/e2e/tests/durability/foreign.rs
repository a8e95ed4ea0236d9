//! The write cache of a disk whose back-end Outboard did not start as its own:
//! what the back-end says of it is not believed.
//!
//! qemu-storage-daemon has one and says that it has none until it is told, so a
//! Linux guest would never flush.

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use outboard_e2e::image::Image;
use outboard_e2e::vm::Ended;

use crate::served::{Backend, Program, QUEUES, Served};
use crate::trace::Trace;
use crate::{no_kvm, trace, trial};

const SIZE: u64 = 32 << 20;
/// What the guest is to do, and its flushes: each queue's, and one at the end.
const CMDLINE: &str = "scenario=identify,verify requests=400 depth=1 flush_every=4";
const FLUSHES: u64 = 400 / 4 + QUEUES;
/// What is said where the back-end had said that its cache is off.
const SAID: &str = "said that its write cache is off";

/// The end of a guest on this back-end's disk, and how often that was synced.
fn run(image: &Image, backend: Backend) -> Result<(Ended, u64)> {
    let trace = Trace::of(image.path())?;
    let ended = Served::by_hand(backend, CMDLINE)?.wait()?;
    ended.result("verify")?.passed()?;
    Ok((ended, trace.counts()?.syncs))
}

/// Its driver goes by the byte that says whether there is a cache, and so many
/// of its flushes sync the image at least.
fn is_flushed(image: &Image, backend: Backend, least: u64) -> Result<()> {
    let (ended, syncs) = run(image, backend)?;
    let Ended {
        console, messages, ..
    } = &ended;
    ensure!(console.contains(" wce=1 "), "no write cache: {console}");
    ensure!(messages.contains(SAID), "nothing was said: {messages}");
    ensure!(syncs >= least, "{FLUSHES} flushes, {syncs} syncs");
    Ok(())
}

/// QEMU answers flushes that come together by one sync, and one with nothing
/// written since the last by none, which is every second one at the very most.
fn qemu_s() -> Result<()> {
    let image = Image::new(SIZE)?;
    let least = FLUSHES / QUEUES / 2;
    is_flushed(&image, Backend::storage_daemon(&image)?, least)
}

fn ours_by_hand() -> Result<()> {
    let image = Image::new(SIZE)?;
    let program = Program::Sound.path()?;
    let backend = Backend::start(&program, "threads", &image, &["--wce=off"])?;
    is_flushed(&image, backend, FLUSHES)
}

/// One who says that it is on is believed without a word.
fn ours_with_a_cache() -> Result<()> {
    let image = Image::new(SIZE)?;
    let backend = Backend::start(&Program::Sound.path()?, "threads", &image, &[])?;
    let (ended, _) = run(&image, backend)?;
    let messages = &ended.messages;
    ensure!(ended.console.contains(" wce=1 "), "no write cache");
    ensure!(!messages.contains(SAID), "something was said: {messages}");
    Ok(())
}

fn no_daemon() -> Option<String> {
    let tried = std::process::Command::new("qemu-storage-daemon")
        .arg("--version")
        .output();
    let error = tried.err()?;
    Some(format!("qemu-storage-daemon: {error}"))
}

/// The tests of this file.
pub fn trials() -> Vec<Trial> {
    let unusable = || no_kvm().or_else(trace::unusable);
    let by_qemu = move || unusable().or_else(no_daemon);
    let name = |name: &str| name.to_owned();
    vec![
        trial(name("the guest flushes the disk of QEMU"), by_qemu, qemu_s),
        trial(
            name("the guest flushes a disk whose cache was turned off by hand"),
            unusable,
            ours_by_hand,
        ),
        trial(
            name("the guest flushes a disk whose cache is on and nothing is said"),
            unusable,
            ours_with_a_cache,
        ),
    ]
}
