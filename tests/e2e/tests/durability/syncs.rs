//! Flushes and the write cache: how often the image was synced, against what
//! the guest was told.

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use outboard_e2e::image::Image;
use outboard_e2e::vm::Ended;

use crate::served::{Program, QUEUES, Served, WAYS, Way};
use crate::trace::{Counts, Trace};
use crate::{ByWay, traced};

const SIZE: u64 = 32 << 20;
const FORGETFUL: Program = Program::Faulty("blk-forgets-syncs");

/// Requests of the guest that flushes, and how many make room for a flush.
const REQUESTS: u64 = 400;
const FLUSH_EVERY: u64 = 4;
/// Its flushes: each queue's, and one at the end. With one request at a time
/// none is left out because another is still under way.
const FLUSHES: u64 = REQUESTS / FLUSH_EVERY + QUEUES;
/// Writes of the guest that only writes.
const WRITES: u64 = 400;
/// All features but FLUSH (bit 9).
const CANNOT_FLUSH: &str = " features_mask=0xfffffffffffffdff";

/// Runs a guest to its end, which must be good, and counts what happened.
fn run(way: Way, program: Program, options: &[&str], cmdline: &str) -> Result<(Ended, Counts)> {
    let image = Image::new(SIZE)?;
    let trace = Trace::of(image.path())?;
    let ended = Served::start(way, program, &image, options, cmdline)?.wait()?;
    Ok((ended, trace.counts()?))
}

/// How often a guest's flushes synced the image.
fn syncs_of_flushes(way: Way, program: Program) -> Result<u64> {
    let cmdline = format!("scenario=verify requests={REQUESTS} depth=1 flush_every={FLUSH_EVERY}");
    let (ended, counts) = run(way, program, &[], &cmdline)?;
    ended.result("verify")?.passed()?;
    Ok(counts.syncs)
}

/// How often a guest's writes, all of which it was told were done, synced it.
fn syncs_of_writes(way: Way, program: Program, options: &[&str], more: &str) -> Result<u64> {
    let cmdline =
        format!("scenario=measure rw=randwrite requests={WRITES} seconds=600 depth=8{more}");
    let (ended, counts) = run(way, program, options, &cmdline)?;
    let result = ended.result("measure")?.passed()?;
    let writes = result.number("requests")?;
    ensure!(writes >= WRITES, "the guest made {writes} writes only");
    Ok(counts.syncs)
}

fn flushes_are_syncs(way: Way) -> Result<()> {
    let syncs = syncs_of_flushes(way, Program::Sound)?;
    ensure!(syncs >= FLUSHES, "{FLUSHES} flushes, {syncs} syncs");
    Ok(())
}

/// Flushes that are under way at the same time may be one sync, but not those
/// of one queue, which has written in between.
fn flushes_of_each_queue_are_syncs(way: Way) -> Result<()> {
    let syncs = syncs_of_flushes(way, Program::Sound)?;
    let least = FLUSHES / QUEUES - 1;
    ensure!(
        syncs >= least,
        "{FLUSHES} flushes of {QUEUES} queues, {syncs} syncs"
    );
    Ok(())
}

fn forgotten_flushes_are_noticed(way: Way) -> Result<()> {
    let syncs = syncs_of_flushes(way, FORGETFUL)?;
    ensure!(syncs < FLUSHES, "{syncs} syncs of {FLUSHES} were forgotten");
    Ok(())
}

fn writes_through_are_synced(way: Way) -> Result<()> {
    let syncs = syncs_of_writes(way, Program::Sound, &["wce=off"], "")?;
    ensure!(syncs >= WRITES, "{WRITES} writes, {syncs} syncs");
    Ok(())
}

fn forgotten_writes_through_are_noticed(way: Way) -> Result<()> {
    let syncs = syncs_of_writes(way, FORGETFUL, &["wce=off"], "")?;
    ensure!(syncs < WRITES, "{syncs} syncs of {WRITES} were forgotten");
    Ok(())
}

fn writes_of_a_driver_that_cannot_flush_are_synced(way: Way) -> Result<()> {
    let syncs = syncs_of_writes(way, Program::Sound, &[], CANNOT_FLUSH)?;
    ensure!(syncs >= WRITES, "{WRITES} writes, {syncs} syncs");
    Ok(())
}

fn a_driver_that_cannot_flush_notices(way: Way) -> Result<()> {
    let syncs = syncs_of_writes(way, FORGETFUL, &[], CANNOT_FLUSH)?;
    ensure!(syncs < WRITES, "{syncs} syncs of {WRITES} were forgotten");
    Ok(())
}

fn cached_writes_are_not_synced(way: Way) -> Result<()> {
    let syncs = syncs_of_writes(way, Program::Sound, &["wce=on"], "")?;
    ensure!(syncs * 10 < WRITES, "{WRITES} writes, {syncs} syncs");
    Ok(())
}

/// The tests of this file, each for every way to serve a disk.
pub fn trials() -> Vec<Trial> {
    let tests: &[ByWay] = &[
        ("every flush syncs the image", flushes_are_syncs),
        (
            "a back-end that forgets flushes is found out",
            forgotten_flushes_are_noticed,
        ),
        (
            "with the write cache off every write syncs the image",
            writes_through_are_synced,
        ),
        (
            "with the write cache off a back-end that forgets is found out",
            forgotten_writes_through_are_noticed,
        ),
        (
            "for a driver that cannot flush every write syncs the image",
            writes_of_a_driver_that_cannot_flush_are_synced,
        ),
        (
            "for a driver that cannot flush a back-end that forgets is found out",
            a_driver_that_cannot_flush_notices,
        ),
        (
            "with the write cache on writes do not sync the image",
            cached_writes_are_not_synced,
        ),
    ];
    let all = tests.iter().flat_map(|test| WAYS.map(|way| (test, way)));
    let ours = all.map(|((name, test), way)| traced(name, way, *test));
    let others = traced(
        "no flush is answered without a sync of the image",
        Way::StorageDaemon,
        flushes_of_each_queue_are_syncs,
    );
    ours.chain([others]).collect()
}
