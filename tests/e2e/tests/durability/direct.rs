//! Direct I/O: nothing of the image enters the page cache, and the back-end's
//! descriptor says so.

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use outboard_e2e::image::Image;

use crate::served::{Held, Program, Served, WAYS, Way};
use crate::trace::Trace;
use crate::{ByWay, traced};

const SIZE: u64 = 32 << 20;
/// Pages, at least, that this much I/O brings into the page cache otherwise.
const MANY: u64 = 50;

/// Lets a guest read and write for a while. Answers the flags of the
/// back-end's descriptors of the image, and how many times pages of it entered
/// the page cache.
fn load(way: Way, options: &[&str]) -> Result<(Vec<i32>, u64)> {
    let image = Image::new(SIZE)?;
    let trace = Trace::of(image.path())?;
    let cmdline = "scenario=load report=500 ragged=1";
    let mut served = Served::start(way, Program::Sound, &image, options, cmdline)?;
    for _ in 0..2 {
        served.vm.console_line("progress")?;
    }
    let backend = served.backend()?;
    let flags = image.flags_in(backend);
    served.vm.signal(Signal::SIGTERM)?;
    served.wait()?;
    ensure!(!flags.is_empty(), "the back-end does not hold the image");
    Ok((flags, trace.counts()?.pages))
}

fn is_direct(flags: i32) -> bool {
    OFlag::from_bits_retain(flags).contains(OFlag::O_DIRECT)
}

fn direct_passes_the_page_cache_by(way: Way) -> Result<()> {
    let (flags, pages) = load(way, &["direct"])?;
    ensure!(
        flags.iter().all(|flags| is_direct(*flags)),
        "its flags are {flags:x?}"
    );
    ensure!(pages == 0, "{pages} times pages entered the page cache");
    Ok(())
}

fn otherwise_the_page_cache_is_used(way: Way) -> Result<()> {
    let (flags, pages) = load(way, &[])?;
    ensure!(
        !flags.iter().any(|flags| is_direct(*flags)),
        "its flags are {flags:x?}"
    );
    ensure!(pages >= MANY, "{pages} times pages entered the page cache");
    Ok(())
}

/// The tests of this file, each for every way to serve a disk.
pub fn trials() -> Vec<Trial> {
    let tests: &[ByWay] = &[
        (
            "direct I-O bypasses the page cache",
            direct_passes_the_page_cache_by,
        ),
        (
            "other I-O goes through the page cache",
            otherwise_the_page_cache_is_used,
        ),
    ];
    let all = tests.iter().flat_map(|test| WAYS.map(|way| (test, way)));
    all.map(|((name, test), way)| traced(name, way, *test))
        .collect()
}
