//! A byte that is not what was written: the guest must see it, and so must
//! whoever looks at the image.

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use outboard_e2e::image::Image;

use crate::served::{Program, Served, WAYS, Way};
use crate::{no_kvm, trial};

const SEED: u64 = 1;

fn one_byte_is_noticed(way: Way) -> Result<()> {
    let image = Image::new(64 << 20)?;
    let program = Program::Faulty("blk-corrupts-a-byte");
    let cmdline = format!("scenario=verify requests=10000 depth=32 seed={SEED}");
    let ended = Served::start(way, program, &image, &[], &cmdline)?.wait()?;
    let result = ended.result("verify")?;
    ensure!(
        result.word("result")? == "fail" && result.word("reason")? == "data",
        "the guest saw nothing: {result:?}"
    );
    let seen = image.check(SEED);
    ensure!(
        seen.is_err(),
        "the check of the image saw nothing: {seen:?}"
    );
    Ok(())
}

/// The tests of this file, each for every way to serve a disk.
pub fn trials() -> Vec<Trial> {
    let test = |way: Way| {
        trial(
            format!("one corrupted byte is seen by the guest and on the image {way}"),
            move || no_kvm().or_else(|| way.missing()),
            move || one_byte_is_noticed(way),
        )
    };
    WAYS.map(test).into()
}
