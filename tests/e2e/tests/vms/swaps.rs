//! A back-end that works is replaced by another on command, under a guest that checks
//! every block and every completion.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use outboard_e2e::eventually;
use outboard_e2e::image::{self, Image};
use outboard_e2e::slow_disk::{Kind, SlowDisk};
use outboard_e2e::storm::daemon::Daemon;
use outboard_e2e::storm::swaps::{self, Plan};
use outboard_e2e::storm::{IMAGE, Outcome, Programs, Shape, Storm};
use outboard_e2e::vm::Run;
use outboard_protocol::image_lock::{self, Access};
use serde_json::Value;

use crate::api::{complained, ctl, said};
use crate::storm::seed;
use crate::{KVM, Need, Test, test};

const QSD: &[Need] = &[Need::Kvm, Need::Program("qemu-storage-daemon")];
const FUSE: &[Need] = &[Need::Kvm, Need::Fuse];
const DIRECT: &[Need] = &[
    Need::Kvm,
    Need::Program("qemu-storage-daemon"),
    Need::DirectIo,
];

pub fn tests() -> Vec<Test> {
    vec![
        test(
            "nothing is wrong after swaps among our own",
            KVM,
            among_our_own,
        ),
        test(
            "nothing is wrong after 26 swaps with a storage daemon and kills",
            QSD,
            || storms(&Plan::new(26, seed())),
        ),
        test(
            "nothing is wrong after 24 swaps with a storage daemon between resets",
            QSD,
            || {
                let mut plan = Plan::new(24, seed());
                plan.shape = plan.shape.guest("reset_ms=150 overlap=1");
                storms(&plan)
            },
        ),
        test(
            "nothing is wrong after 10 swaps past the page cache",
            DIRECT,
            || {
                let mut plan = Plan::new(10, seed());
                plan.shape = plan.shape.disk(",direct");
                plan.shape.folder = std::env::temp_dir();
                storms(&plan)
            },
        ),
        test(
            "nothing is wrong after 10 swaps with a standby",
            QSD,
            || {
                let mut plan = Plan::new(10, seed());
                plan.shape = plan.shape.disk(",standby=1");
                storms(&plan)
            },
        ),
        test("each device is swapped by itself", KVM, each_by_itself),
        test("entropy is swapped under load", KVM, entropy),
        test("a swap is only tried at a socket", QSD, only_tried),
        test("a disk goes over to a copy of its image", KVM, to_a_copy),
        test(
            "the image of a vm that is paused can be copied",
            KVM,
            copied_while_paused,
        ),
        test(
            "a vm is paused once what its disk has taken is over",
            FUSE,
            paused_after_a_write,
        ),
        test(
            "a disk is killed and upgraded while its vm is paused",
            KVM,
            killed_while_paused,
        ),
        test(
            "a disk goes over to a larger copy if it is told to",
            KVM,
            to_a_larger_copy,
        ),
        test(
            "an image that cannot take the place of another changes nothing",
            KVM,
            to_no_other_image,
        ),
        test(
            "a storage daemon that is killed after a swap leaves its disk down",
            QSD,
            a_killed_daemon_leaves_its_disk_down,
        ),
        test(
            "a storage daemon that was killed after a swap is followed at its socket",
            QSD,
            a_killed_daemon_is_followed_at_its_socket,
        ),
    ]
}

/// Each of these storms was one: so many swaps, and a guest that worked.
fn storms(plan: &Plan) -> Result<()> {
    for plan in plan.vms() {
        let (outcome, done) = swaps::run(&Programs::get()?, &plan)?;
        eprintln!("seed {}: {:?}", plan.shape.seed, done.steps);
        let outcome = outcome.nothing_is_wrong()?;
        worked(&outcome)?;
    }
    Ok(())
}

fn worked(outcome: &Outcome) -> Result<()> {
    let requests = outcome.result.number("requests")?;
    ensure!(requests > 1000, "{}", outcome.ended);
    Ok(())
}

/// A VM of Outboard's whose guest checks its disk.
fn begun(shape: &Shape) -> Result<Storm> {
    Storm::begin(&Programs::get()?, shape)
}

/// As [`Storm::ctl`], whatever comes of it.
fn tried(storm: &Storm, words: &[&str]) -> Result<Output> {
    ctl(&storm.api(), words)
}

fn swap(storm: &Storm, words: &[&str]) -> Result<Value> {
    let mut all = vec!["swap"];
    all.extend(words);
    let text = storm.ctl(&all).with_context(|| storm.vm.messages())?;
    serde_json::from_str(&text).context(text)
}

fn device(storm: &Storm, place: usize) -> Result<Value> {
    Ok(storm.status()?["devices"][place].take())
}

fn goes_on(storm: &mut Storm) -> Result<()> {
    storm.killer.note();
    storm.killer.until_it_goes_on(&mut storm.vm)
}

fn checked(storm: &mut Storm) -> Result<Outcome> {
    let outcome = storm.end()?.nothing_is_wrong()?;
    worked(&outcome)?;
    Ok(outcome)
}

fn among_our_own() -> Result<()> {
    let mut storm = begun(&Shape::new(0, seed()))?;
    for _ in 0..10 {
        let before = device(&storm, 0)?;
        let swapped = swap(&storm, &["disk0"])?;
        let gap = swapped["gap"]["total_us"].as_u64();
        ensure!(gap.is_some_and(|gap| gap > 0), "{swapped}");
        let after = device(&storm, 0)?;
        ensure!(after["pid"] != before["pid"], "{before}, then {after}");
        goes_on(&mut storm)?;
    }
    checked(&mut storm).map(drop)
}

/// Two disks and a source of entropy: the others keep their processes.
fn each_by_itself() -> Result<()> {
    let other = Image::new(IMAGE)?;
    let mut shape = Shape::new(0, seed());
    shape.more = vec![
        ("--disk".into(), other.option().into()),
        ("--rng".into(), "id=rng0".into()),
    ];
    let mut storm = begun(&shape)?;
    let pids = |storm: &Storm| -> Result<Vec<Value>> {
        (0..3)
            .map(|at| Ok(device(storm, at)?["pid"].take()))
            .collect()
    };
    for at in [0, 2, 1, 1, 0, 2] {
        let before = pids(&storm)?;
        let id = device(&storm, at)?["id"].take();
        swap(&storm, &[id.as_str().context("no id")?])?;
        let after = pids(&storm)?;
        for place in 0..3 {
            let is_same = before[place] == after[place];
            ensure!(is_same != (place == at), "{id}: {before:?}, {after:?}");
        }
        goes_on(&mut storm)?;
    }
    checked(&mut storm)?;
    other.wait_until_free()
}

fn entropy() -> Result<()> {
    const REQUESTS: u64 = 600_000;
    let folder = tempfile::tempdir()?;
    let api = folder.path().join("api");
    let mut vm = Run::guest(&format!("scenario=identify,rng requests={REQUESTS}"))?
        .switch("--rng")
        .with("--api", &api)
        .start()?;
    vm.console_line("OUTBOARD identify")?;
    said(ctl(&api, &["wait", "rng0", "running", "--timeout", "5m"])?)?;
    for _ in 0..5 {
        let swapped = said(ctl(&api, &["--json", "swap", "rng0"])?)?;
        ensure!(swapped.contains("outboard-rng"), "{swapped}");
        said(ctl(&api, &["swap", "rng0", "--dry-run"])?)?;
    }
    let ended = vm.wait()?.with_code(0)?;
    let result = ended.result("rng")?.passed()?;
    ensure!(result.number("requests")? == REQUESTS, "{ended}");
    vm.check_nothing_is_left()
}

/// A disk that both ours and QEMU's can serve.
fn portable() -> Shape {
    Shape::new(0, seed()).disk(",profile=portable")
}

fn daemon(storm: &Storm) -> Result<Daemon> {
    let socket = storm.image.directory().join("blk.sock");
    Daemon::start(storm.image.path(), socket, false)
}

/// Who was found to fit may be swapped to afterwards.
fn only_tried() -> Result<()> {
    let mut storm = begun(&portable())?;
    let daemon = daemon(&storm)?;
    let socket = format!("socket={}", daemon.socket().display());
    let before = device(&storm, 0)?;
    for _ in 0..3 {
        let swapped = swap(&storm, &["disk0", "--dry-run", &socket])?;
        let to = &swapped["to"]["program"];
        ensure!(*to == daemon.socket().display().to_string(), "{swapped}");
        ensure!(swapped["gap"].is_null(), "{swapped}");
    }
    ensure!(device(&storm, 0)?["pid"] == before["pid"]);
    goes_on(&mut storm)?;
    swap(&storm, &["disk0", &socket])?;
    goes_on(&mut storm)?;
    swap(&storm, &["disk0"])?;
    goes_on(&mut storm)?;
    checked(&mut storm).map(drop)
}

/// The way that lets the VM run: the disk alone is paused, copied and swapped, and goes on
/// with that.
fn goes_over(storm: &mut Storm, to: PathBuf, resize: &[&str]) -> Result<()> {
    let from = std::mem::replace(&mut storm.behind, to);
    let to = storm.behind.clone();
    let path = format!("path={}", to.display());
    let words = [&["disk0", path.as_str()], resize].concat();
    storm.ctl(&["pause", "disk0"])?;
    fs::copy(&from, &to)?;
    let left = fs::read(&from)?;
    swap(storm, &words)?;
    goes_on(storm)?;
    image::wait_until_free(&from)?;
    ensure!(!image::is_free(&to)?, "{to:?} is not locked");
    goes_on(storm)?;
    ensure!(fs::read(&from)? == left, "{from:?} has been written");
    ensure!(fs::read(&to)? != left, "{to:?} has not been written");
    Ok(())
}

fn to_a_copy() -> Result<()> {
    let mut storm = begun(&Shape::new(0, seed()))?;
    let first = storm.image.path().to_owned();
    let copy = storm.image.directory().join("copy.img");
    for _ in 0..2 {
        goes_over(&mut storm, copy.clone(), &[])?;
        goes_over(&mut storm, first.clone(), &[])?;
    }
    goes_over(&mut storm, copy, &[])?;
    // Whoever is started next has what served last.
    let pid = storm.killer.next(&mut storm.vm, None)?;
    storm
        .killer
        .strike(pid, nix::sys::signal::Signal::SIGKILL)?;
    storm.killer.until_it_goes_on(&mut storm.vm)?;
    swap(&storm, &["disk0"])?;
    goes_on(&mut storm)?;
    ensure!(image::is_free(&first)?);
    checked(&mut storm).map(drop)
}

/// The bytes of a disk at rest: the same twice.
fn at_rest(storm: &Storm, path: &Path) -> Result<Vec<u8>> {
    let once = fs::read(path)?;
    let status = storm.status()?;
    ensure!(status["state"] == "paused", "{status}");
    ensure!(status["devices"][0]["state"] == "paused", "{status}");
    ensure!(fs::read(path)? == once, "{path:?} changes");
    Ok(once)
}

/// The documented way: the VM is paused, its image copied, the disk swapped to the copy, and
/// the VM resumed, again and again. No image changes while the VM is paused, neither that
/// which is copied nor that which was swapped to.
fn copied_while_paused() -> Result<()> {
    const ROUNDS: u32 = 20;
    let mut storm = begun(&Shape::new(0, seed()))?;
    let other = storm.image.directory().join("copy.img");
    let images = [storm.image.path().to_owned(), other];
    for round in 0..ROUNDS {
        let [from, to] = match round % 2 {
            0 => [&images[0], &images[1]],
            _ => [&images[1], &images[0]],
        };
        storm.killer.wait_a_while();
        storm.ctl(&["pause"])?;
        let before = at_rest(&storm, from)?;
        fs::copy(from, to)?;
        ensure!(fs::read(to)? == before, "round {round}: the copy is torn");
        swap(&storm, &["disk0", &format!("path={}", to.display())])?;
        at_rest(&storm, to)?;
        ensure!(fs::read(from)? == before, "{from:?} has been written");
        storm.behind.clone_from(to);
        storm.ctl(&["resume"])?;
        goes_on(&mut storm)?;
        ensure!(fs::read(from)? == before, "{from:?} has been written");
        ensure!(device(&storm, 0)?["state"] == "running");
    }
    checked(&mut storm).map(drop)
}

/// The disk keeps a write that the guest has given it before. It would come under the copy.
fn paused_after_a_write() -> Result<()> {
    let image = Image::new(IMAGE)?;
    let disk = SlowDisk::over(&image)?;
    let shape = Shape::new(0, seed()).disk(",direct");
    let mut storm = Storm::begin_on(&Programs::get()?, &shape, image)?;
    for _ in 0..3 {
        disk.keep(Kind::Write);
        disk.until_kept()?;
        let api = storm.api();
        let pause = std::thread::spawn(move || ctl(&api, &["pause"]));
        let why = eventually("the guest stands", || {
            let vm = storm.status()?;
            ensure!(vm["state"] == "running", "a write is under way: {vm}");
            let why = vm["reason"].as_str().map(str::to_owned);
            Ok(why.filter(|why| why.contains("disk0")))
        })?;
        ensure!(why.contains("finishes what it has taken"), "{why}");
        ensure!(!pause.is_finished(), "it is answered");
        disk.let_go()?;
        let Ok(paused) = pause.join() else {
            bail!("who pauses has panicked");
        };
        said(paused?)?;
        at_rest(&storm, storm.image.path())?;
        storm.ctl(&["resume"])?;
        goes_on(&mut storm)?;
    }
    checked(&mut storm)?;
    // Before the image.
    drop(disk);
    Ok(())
}

/// Who serves a disk at rest may go, and be followed on command: nobody serves before the VM
/// is resumed.
fn killed_while_paused() -> Result<()> {
    let mut storm = begun(&Shape::new(0, seed()))?;
    let image = storm.image.path().to_owned();
    for _ in 0..3 {
        storm.ctl(&["pause"])?;
        at_rest(&storm, &image)?;
        for words in [
            ["resume", "disk0"],
            ["pause", "disk0"],
            ["restart", "disk0"],
        ] {
            let why = complained(tried(&storm, &words)?, 1)?;
            ensure!(why.contains("resume the VM first"), "{words:?}: {why}");
        }
        storm.ctl(&["upgrade", "disk0"])?;
        at_rest(&storm, &image)?;
        let pid = storm.killer.next(&mut storm.vm, None)?;
        let before = at_rest(&storm, &image)?;
        storm.killer.strike(pid, Signal::SIGKILL)?;
        let down = is_in(&storm, "down")?;
        ensure!(down["reason"] == "it is started when the VM is resumed");
        ensure!(fs::read(&image)? == before, "it is served");
        storm.ctl(&["resume"])?;
        goes_on(&mut storm)?;
    }
    checked(&mut storm).map(drop)
}

/// Makes a file of so many bytes beside the image.
fn beside(storm: &Storm, name: &str, size: u64) -> Result<PathBuf> {
    let path = storm.image.directory().join(name);
    fs::File::create(&path)?.set_len(size)?;
    Ok(path)
}

/// A swap to this file is refused for this reason, and nothing has changed by it.
fn is_refused(storm: &mut Storm, file: &Path, why: &str) -> Result<()> {
    let before = device(storm, 0)?;
    let path = format!("path={}", file.display());
    let said = complained(tried(storm, &["swap", "disk0", &path])?, 1)?;
    ensure!(said.contains(why), "{said}");
    let after = device(storm, 0)?;
    for key in ["pid", "program", "state", "restarts"] {
        ensure!(after[key] == before[key], "{before}, then {after}: {said}");
    }
    goes_on(storm)
}

fn to_a_larger_copy() -> Result<()> {
    let mut storm = begun(&Shape::new(0, seed()))?;
    let larger = beside(&storm, "larger.img", IMAGE * 2)?;
    is_refused(&mut storm, &larger, "--resize")?;
    // It was lent to whoever was refused.
    image::wait_until_free(&larger)?;
    storm.ctl(&["pause", "disk0"])?;
    fs::copy(storm.image.path(), &larger)?;
    fs::File::options()
        .write(true)
        .open(&larger)?
        .set_len(IMAGE * 2)?;
    let path = format!("path={}", larger.display());
    swap(&storm, &["disk0", &path, "--resize"])?;
    storm.behind = larger;
    goes_on(&mut storm)?;
    image::wait_until_free(storm.image.path())?;
    checked(&mut storm).map(drop)
}

fn to_no_other_image() -> Result<()> {
    let other = Image::new(IMAGE)?;
    let mut shape = Shape::new(0, seed());
    shape.more = vec![("--disk".into(), other.option().into())];
    let mut storm = begun(&shape)?;
    let folder = storm.image.directory().to_owned();
    let own = storm.image.path().to_owned();
    let link = folder.join("link.img");
    fs::hard_link(&own, &link)?;
    let odd = beside(&storm, "odd.img", IMAGE + 1)?;
    let empty = beside(&storm, "empty.img", 0)?;
    is_refused(&mut storm, other.path(), "to disk1 and disk0")?;
    is_refused(&mut storm, &folder.join("none.img"), "does not exist")?;
    is_refused(&mut storm, &folder, "is a directory")?;
    is_refused(&mut storm, &odd, "not a multiple")?;
    is_refused(&mut storm, &empty, "is empty")?;
    is_refused(&mut storm, &link, "has it already; leave out `path`")?;
    let locked = Image::new(IMAGE)?;
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(locked.path())?;
    image_lock::lock(&file, Access::Write)?;
    is_refused(&mut storm, locked.path(), "in use")?;
    // The name by which it has it is no other.
    swap(&storm, &["disk0", &format!("path={}", own.display())])?;
    goes_on(&mut storm)?;
    ensure!(!image::is_free(&own)? && !image::is_free(other.path())?);
    checked(&mut storm).map(drop)
}

/// What it had is gone with it, and no record of that is left: nobody may follow it before
/// the guest has reset the device, which waits for its requests.
fn a_killed_daemon_leaves_its_disk_down() -> Result<()> {
    let mut storm = begun(&portable())?;
    let first = swapped_to_a_daemon(&mut storm)?;
    let socket = first.socket().to_owned();
    // The guest has requests in flight all the time.
    kill(first.pid(), Signal::SIGSTOP)?;
    std::thread::sleep(Duration::from_millis(100));
    first.kill()?;
    let again = Daemon::start(storm.image.path(), socket, false)?;
    let down = is_in(&storm, "down")?;
    let why = down["last_error"].as_str().context("no reason")?;
    let words = ["no inflight region", "the guest must reset the device"];
    ensure!(words.iter().all(|word| why.contains(word)), "{down}");
    ensure!(down["pid"].is_null(), "{down}");
    ensure!(down["program"] == again.socket().display().to_string());
    let said = complained(tried(&storm, &["swap", "disk0"])?, 1)?;
    ensure!(said.contains("it is down"), "{said}");
    storm.ctl(&["shutdown"])?;
    let ended = storm.vm.wait()?.with_code(0)?;
    ended.saying(&["no inflight region"])?;
    Ok(())
}

/// After a reset by the guest whoever listens at the socket serves. Ours, which served
/// before, is not started by itself: it could not know whether a daemon that is only cut off
/// still writes.
fn a_killed_daemon_is_followed_at_its_socket() -> Result<()> {
    let mut storm = begun(&portable().guest("reset_ms=700"))?;
    let first = swapped_to_a_daemon(&mut storm)?;
    let socket = first.socket().to_owned();
    first.kill()?;
    let waits = is_in(&storm, "restarting")?;
    ensure!(waits["program"] == socket.display().to_string(), "{waits}");
    ensure!(waits["pid"].is_null(), "{waits}");
    let said = complained(tried(&storm, &["swap", "disk0"])?, 1)?;
    let advice = format!("start the back-end at {} again", socket.display());
    ensure!(said.contains(&advice), "{said}");
    ensure!(storm.killer.newest(&storm.vm).is_none(), "ours is there");
    let _again = Daemon::start(storm.image.path(), socket, false)?;
    is_in(&storm, "running")?;
    goes_on(&mut storm)?;
    swap(&storm, &["disk0"])?;
    goes_on(&mut storm)?;
    let outcome = checked(&mut storm)?;
    outcome
        .ended
        .saying(&["the back-end closed its connection"])?;
    Ok(())
}

fn swapped_to_a_daemon(storm: &mut Storm) -> Result<Daemon> {
    let daemon = daemon(storm)?;
    let words = format!("socket={}", daemon.socket().display());
    swap(storm, &["disk0", &words])?;
    goes_on(storm)?;
    Ok(daemon)
}

/// Waits until the disk is in this state, and returns it.
fn is_in(storm: &Storm, state: &str) -> Result<Value> {
    eventually(state, || {
        let device = device(storm, 0)?;
        Ok((device["state"] == state).then_some(device))
    })
}
