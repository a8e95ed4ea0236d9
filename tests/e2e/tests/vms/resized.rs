//! A disk gets another size, and a device rests, on command, under a guest that checks every
//! block.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use outboard_e2e::storm::killer::Blow;
use outboard_e2e::storm::{IMAGE, Programs, Shape, Storm};
use serde_json::Value;

use crate::api::{complained, ctl};
use crate::storm::seed;
use crate::{KVM, Need, Test, test};

const LOOP: &[Need] = &[Need::Kvm, Need::Root, Need::Program("losetup")];

pub fn tests() -> Vec<Test> {
    vec![
        test("a disk grows and shrinks under load", KVM, sizes),
        test("a disk follows its image on command", KVM, rescan),
        test(
            "a disk that goes over to a block device follows its size",
            LOOP,
            block_device,
        ),
        test("a disk rests and goes on", KVM, rests),
    ]
}

fn begin() -> Result<Storm> {
    Storm::begin(&Programs::get()?, &Shape::new(0, seed()))
}

fn goes_on(storm: &mut Storm) -> Result<()> {
    storm.killer.note();
    storm.killer.until_it_goes_on(&mut storm.vm)
}

fn size(storm: &Storm, words: &[&str]) -> Result<u64> {
    let text = storm.ctl(&[&["resize", "disk0"], words].concat())?;
    let resized: Value = serde_json::from_str(&text)?;
    resized["size"].as_u64().context(text)
}

fn length(storm: &Storm) -> Result<u64> {
    Ok(fs::metadata(storm.image.path())?.len())
}

fn sizes() -> Result<()> {
    let mut storm = begin()?;
    for _ in 0..3 {
        ensure!(size(&storm, &["32M"])? == 2 * IMAGE);
        ensure!(length(&storm)? == 2 * IMAGE);
        goes_on(&mut storm)?;
        // Its image is as large as it is.
        let serving = storm.killer.newest(&storm.vm).context("nobody serves")?;
        storm.strike(serving, Blow::KILL)?;
        goes_on(&mut storm)?;
        ensure!(size(&storm, &["16M"])? == IMAGE);
        ensure!(length(&storm)? == IMAGE);
        goes_on(&mut storm)?;
    }
    for (words, complaint) in [
        (vec!["resize", "disk0", "0"], "a multiple of 512"),
        (vec!["resize", "disk0", "1000"], "a multiple of 512"),
        (vec!["resize", "disk7", "1M"], "there is no device"),
    ] {
        let said = complained(ctl(&storm.api(), &words)?, 1)?;
        ensure!(said.contains(complaint), "{said}");
    }
    let said = complained(ctl(&storm.api(), &["resize", "disk0", "much"])?, 2)?;
    ensure!(said.contains("write it as 20G"), "{said}");
    ensure!(length(&storm)? == IMAGE);
    storm.end()?.nothing_is_wrong().map(drop)
}

fn rescan() -> Result<()> {
    let mut storm = begin()?;
    ensure!(size(&storm, &["--rescan"])? == IMAGE);
    let file = fs::OpenOptions::new()
        .write(true)
        .open(storm.image.path())?;
    file.set_len(2 * IMAGE)?;
    ensure!(size(&storm, &["--rescan"])? == 2 * IMAGE);
    goes_on(&mut storm)?;
    storm.end()?.nothing_is_wrong().map(drop)
}

/// A loop device of this file, by losetup(8); taken apart when dropped.
struct Loop(PathBuf);

impl Loop {
    fn new(file: &Path) -> Result<Self> {
        let mut command = Command::new("losetup");
        let output = command.args(["--find", "--show"]).arg(file).output()?;
        ensure!(output.status.success(), "{output:?}");
        let name = String::from_utf8(output.stdout)?;
        Ok(Self(Path::new(name.trim()).to_owned()))
    }

    fn losetup(&self, option: &str) -> Result<()> {
        let status = Command::new("losetup").arg(option).arg(&self.0).status()?;
        ensure!(status.success(), "losetup {option}: {status}");
        Ok(())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = self.losetup("--detach");
    }
}

fn block_device() -> Result<()> {
    let mut storm = begin()?;
    let file = storm.image.directory().join("behind.img");
    storm.ctl(&["pause", "disk0"])?;
    fs::copy(storm.image.path(), &file)?;
    let device = Loop::new(&file)?;
    let path = format!("path={}", device.0.display());
    storm.ctl(&["swap", "disk0", &path])?;
    storm.behind.clone_from(&device.0);
    goes_on(&mut storm)?;
    let said = complained(ctl(&storm.api(), &["resize", "disk0", "32M"])?, 1)?;
    ensure!(said.contains("--rescan"), "{said}");
    for size in [2 * IMAGE, 4 * IMAGE, IMAGE] {
        fs::OpenOptions::new()
            .write(true)
            .open(&file)?
            .set_len(size)?;
        device.losetup("--set-capacity")?;
        ensure!(self::size(&storm, &["--rescan"])? == size);
        goes_on(&mut storm)?;
    }
    storm.end()?.nothing_is_wrong().map(drop)
}

fn rests() -> Result<()> {
    let mut storm = begin()?;
    for _ in 0..3 {
        storm.ctl(&["pause", "disk0"])?;
        ensure!(storm.status()?["devices"][0]["state"] == "paused");
        let requests = || -> Result<Value> {
            Ok(storm.status()?["devices"][0]["counters"][0]["requests"].clone())
        };
        let before = requests()?;
        std::thread::sleep(Duration::from_millis(50));
        ensure!(requests()? == before, "it has taken some");
        let said = complained(ctl(&storm.api(), &["pause", "disk0"])?, 1)?;
        ensure!(said.contains("it is paused already"), "{said}");
        storm.ctl(&["resume", "disk0"])?;
        ensure!(storm.status()?["devices"][0]["state"] == "running");
        goes_on(&mut storm)?;
    }
    // A swap is the other way on.
    storm.ctl(&["pause", "disk0"])?;
    storm.ctl(&["swap", "disk0"])?;
    goes_on(&mut storm)?;
    let said = complained(ctl(&storm.api(), &["resume", "disk0"])?, 1)?;
    ensure!(said.contains("it is not paused"), "{said}");
    // And so is the end of who rests.
    storm.ctl(&["pause", "disk0"])?;
    let serving = storm.killer.newest(&storm.vm).context("nobody serves")?;
    storm.strike(serving, Blow::KILL)?;
    goes_on(&mut storm)?;
    storm.end()?.nothing_is_wrong().map(drop)
}
