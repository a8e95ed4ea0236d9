//! A swap that cannot be done is refused with the reason, at whichever step that is found,
//! and the guest, which checks every block and every completion, is served on.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use outboard_contract::program::{Program, command};
use outboard_e2e::eventually;
use outboard_e2e::image::Image;
use outboard_e2e::processes::{self, Process};
use outboard_e2e::products::{Products, write_script};
use outboard_e2e::storm::{IMAGE, Programs, Shape, Storm};
use serde_json::Value;
use tempfile::TempDir;

use crate::api::{complained, ctl, said};
use crate::disks::{listener, listening, storage_daemon};
use crate::storm::seed;
use crate::{KVM, Need, Test, test};

const QSD: &[Need] = &[Need::Kvm, Need::Program("qemu-storage-daemon")];

pub fn tests() -> Vec<Test> {
    vec![
        test(
            "a program that does not come up is no successor",
            KVM,
            does_not_come_up,
        ),
        test("a program that is silent is no successor", KVM, is_silent),
        test(
            "a program that speaks nonsense is no successor",
            KVM,
            speaks_nonsense,
        ),
        test("a disk that is another is no successor", KVM, is_another),
        test(
            "a socket where nobody listens is no successor",
            KVM,
            nobody_listens,
        ),
        test(
            "a storage daemon is no successor of a disk that is not portable",
            QSD,
            is_not_portable,
        ),
        test(
            "a storage daemon that locks the image does not start beside its predecessor",
            QSD,
            locks,
        ),
        test("two swaps at once are one", KVM, two_at_once),
        test("a vm ends in the middle of a swap", KVM, shut_down),
        test(
            "a back-end that is killed in the middle of a swap is recovered",
            KVM,
            former_is_killed,
        ),
        test(
            "a back-end that hangs in the middle of a swap is recovered",
            KVM,
            former_hangs,
        ),
        test(
            "a guest that resets its disk all the time is served by one after the other",
            KVM,
            resets,
        ),
        test("swaps that are asked for in vain", KVM, wrong_use),
        test(
            "a program of another release takes over, and the status says so",
            KVM,
            another_release,
        ),
        test(
            "a program of version 1 takes over, and one of version 2 again",
            KVM,
            version_1,
        ),
    ]
}

/// A storm whose disk is to be swapped, and who served it first.
struct Bench {
    storm: Storm,
    scripts: TempDir,
    first: Pid,
}

impl Bench {
    fn new() -> Result<Self> {
        Self::of(&Shape::new(0, seed()))
    }

    fn of(shape: &Shape) -> Result<Self> {
        let storm = Storm::begin(&Programs::get()?, shape)?;
        let first = storm.killer.newest(&storm.vm).context("no back-end")?;
        Ok(Self {
            storm,
            scripts: tempfile::tempdir()?,
            first,
        })
    }

    /// A program that does this.
    fn script(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.scripts.path().join(name);
        write_script(&path, text)?;
        Ok(path)
    }

    fn ctl(&self, words: &[&str]) -> Result<Output> {
        ctl(&self.storm.api(), words)
    }

    /// Begins a swap, and does not wait for its answer.
    fn begin(&self, wanted: &str) -> Result<Child> {
        let program = Products::get()?.program("outboard");
        let mut ctl = command(program, &["ctl", "swap", "disk0", wanted]);
        ctl.env("OUTBOARD_API", self.storm.api());
        ctl.stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(ctl.spawn()?)
    }

    /// What the VM refuses it with.
    fn refuses(&self, words: &[&str]) -> Result<String> {
        let all: Vec<_> = ["swap", "disk0"].iter().chain(words).copied().collect();
        complained(self.ctl(&all)?, 1).with_context(|| format!("{words:?}"))
    }

    fn device(&self) -> Result<Value> {
        Ok(self.storm.status()?["devices"][0].clone())
    }

    /// The one of before serves, as if nothing had been.
    fn serves_on(&mut self) -> Result<()> {
        self.is_served_by("outboard-blk", Some(self.first))?;
        let device = self.device()?;
        ensure!(device["restarts"] == 0, "{device}");
        self.nobody_else_is_left()?;
        self.goes_on()
    }

    fn is_served_by(&self, program: &str, pid: Option<Pid>) -> Result<()> {
        let device = self.device()?;
        ensure!(device["state"] == "running", "{device}");
        let name = device["program"].as_str().context("no program")?;
        ensure!(name.ends_with(program), "{device}");
        ensure!(device["pid"].as_i64() == pid.map(|pid| pid.as_raw().into()));
        Ok(())
    }

    /// Nobody but the machine and the one that serves.
    fn nobody_else_is_left(&self) -> Result<()> {
        let vm = self.storm.vm.pid();
        let gone = eventually("no other process is there", || {
            Ok((processes::children(vm).len() <= 2).then_some(()))
        });
        gone.with_context(|| format!("{:?}", processes::children(vm)))
    }

    fn goes_on(&mut self) -> Result<()> {
        self.storm.killer.note();
        self.storm.killer.until_it_goes_on(&mut self.storm.vm)
    }

    /// A process whose name ends with this.
    fn named(&self, name: &str) -> Result<Pid> {
        let is = |process: &Process| {
            let mut words = process.args.iter();
            words.any(|word| Path::new(word).ends_with(name))
        };
        eventually(name, || {
            let all = processes::children(self.storm.vm.pid());
            Ok(all.into_iter().find(is).map(|process| process.pid))
        })
    }

    /// The guest is told to end, and finds nothing wrong; nor does the image.
    fn ends(mut self) -> Result<()> {
        self.storm.end()?.nothing_is_wrong()?;
        self.storm.vm.check_nothing_is_left()
    }
}

/// Checks that this was said.
fn says(text: &str, words: &[&str]) -> Result<()> {
    let missing = words.iter().find(|words| !text.contains(**words));
    ensure!(missing.is_none(), "no word of {missing:?}: {text}");
    Ok(())
}

fn backend(path: &Path) -> String {
    format!("backend={}", path.display())
}

fn does_not_come_up() -> Result<()> {
    let mut bench = Bench::new()?;
    says(
        &bench.refuses(&["backend=/nowhere/blk"])?,
        &["/nowhere/blk", "made ready"],
    )?;
    bench.serves_on()?;
    let mut plain = bench.script("plain", "exit 0")?;
    fs::set_permissions(&plain, fs::Permissions::from_mode(0o644))?;
    says(&bench.refuses(&[&backend(&plain)])?, &["plain"])?;
    bench.serves_on()?;
    plain = bench.script("ends", "exit 3")?;
    says(&bench.refuses(&[&backend(&plain)])?, &["ends", "3"])?;
    bench.serves_on()?;
    let hangs_up = bench.script("hears", "head -c 12 <&3 >/dev/null; exit 7")?;
    says(&bench.refuses(&[&backend(&hangs_up)])?, &["hears", "7"])?;
    bench.serves_on()?;
    // It knows the contract, and not what it is given.
    let program = Products::get()?.program("outboard-blk");
    let text = format!("exec '{}' --no-such-option", program.display());
    let confused = bench.script("confused", &text)?;
    says(&bench.refuses(&[&backend(&confused)])?, &["confused", "2"])?;
    bench.serves_on()?;
    bench.ends()
}

fn is_silent() -> Result<()> {
    let mut bench = Bench::new()?;
    for text in ["exec sleep 1000", "kill -STOP $$"] {
        let silent = bench.script("silent", text)?;
        says(&bench.refuses(&[&backend(&silent)])?, &["silent"])?;
        bench.serves_on()?;
    }
    bench.ends()
}

fn speaks_nonsense() -> Result<()> {
    let mut bench = Bench::new()?;
    let noise = bench.script(
        "noise",
        "printf 'a poem of more than twelve bytes' >&3; exec sleep 1000",
    )?;
    bench.refuses(&[&backend(&noise)])?;
    bench.serves_on()?;
    let poet = bench.script(
        "poet",
        "eval \"echo a poem >&$OUTBOARD_LINE\"; exec sleep 1000",
    )?;
    says(&bench.refuses(&[&backend(&poet)])?, &["nobody says"])?;
    bench.serves_on()?;
    bench.ends()
}

/// One of ours, with this option in place of what it is given.
fn with(option: &str, value: u32) -> Result<String> {
    let program = Products::get()?.program("outboard-blk");
    let program = program.display();
    Ok(format!(
        "for a; do shift; case $a in {option}=*) ;; *) set -- \"$@\" \"$a\";; esac; done\n\
         exec '{program}' \"$@\" {option}={value}"
    ))
}

fn is_another() -> Result<()> {
    let mut bench = Bench::new()?;
    for (option, value, words) in [
        ("--num-queues", 1, "queue"),
        ("--queue-size", 16, "segments"),
        ("--block-size", 4096, "block"),
    ] {
        let other = bench.script("other", &with(option, value)?)?;
        let why = bench.refuses(&[&backend(&other)])?;
        says(&why, &[words]).context(option)?;
        bench.serves_on()?;
    }
    let larger = Image::new(2 * IMAGE)?;
    let path = format!("path={}", larger.path().display());
    says(&bench.refuses(&[&path])?, &["--resize"])?;
    bench.serves_on()?;
    // Somebody else has it.
    let locked = Image::new(IMAGE)?;
    let socket = locked.directory().join("blk.sock");
    let _holder = listener(&locked, &socket)?;
    let path = format!("path={}", locked.path().display());
    says(&bench.refuses(&[&path])?, &["in use"])?;
    bench.serves_on()?;
    says(
        &bench.refuses(&["path=/nowhere/image"])?,
        &["/nowhere/image"],
    )?;
    bench.serves_on()?;
    bench.ends()
}

fn nobody_listens() -> Result<()> {
    let mut bench = Bench::new()?;
    let socket = bench.scripts.path().join("nobody.sock");
    let wanted = format!("socket={}", socket.display());
    says(&bench.refuses(&[&wanted])?, &["nobody.sock", "wait=10s"])?;
    says(&bench.refuses(&[&wanted, "wait=10ms"])?, &["nobody.sock"])?;
    bench.serves_on()?;
    bench.ends()
}

/// QEMU's, beside whoever has the image open.
fn unlocked_daemon(image: &Image, socket: &Path) -> Result<Program> {
    let file = format!(
        "driver=file,node-name=f,locking=off,filename={}",
        image.path().display()
    );
    let export = format!(
        "type=vhost-user-blk,id=e,node-name=d,writable=on,num-queues=2,addr.type=unix,addr.path={}",
        socket.display()
    );
    let raw = "driver=raw,node-name=d,file=f";
    let options = ["--blockdev", &file, "--blockdev", raw, "--export", &export];
    listening(&mut command("qemu-storage-daemon", &options), socket)
}

fn is_not_portable() -> Result<()> {
    let mut bench = Bench::new()?;
    let socket = bench.scripts.path().join("q.sock");
    let _daemon = unlocked_daemon(&bench.storm.image, &socket)?;
    let wanted = format!("socket={}", socket.display());
    for words in [&[&*wanted][..], &[&*wanted, "--dry-run"]] {
        says(&bench.refuses(words)?, &["profile=portable"])?;
        bench.serves_on()?;
    }
    bench.ends()
}

fn locks() -> Result<()> {
    let mut bench = Bench::of(&Shape::new(0, seed()).disk(",profile=portable"))?;
    let socket = bench.scripts.path().join("q.sock");
    let refused = storage_daemon(&bench.storm.image, &socket).map(drop);
    let refused = format!("{:#}", refused.err().context("it has started")?);
    says(&refused, &["lock"])?;
    let wanted = format!("socket={}", socket.display());
    says(&bench.refuses(&[&wanted])?, &["q.sock"])?;
    bench.serves_on()?;
    bench.ends()
}

fn two_at_once() -> Result<()> {
    let mut bench = Bench::new()?;
    let silent = bench.script("silent", "exec sleep 1000")?;
    let first = bench.begin(&backend(&silent))?;
    let sleeper = bench.named("sleep")?;
    says(&bench.refuses(&[])?, &["is under way"])?;
    for words in [
        ["pause", "disk0"],
        ["resume", "disk0"],
        ["restart", "disk0"],
    ] {
        says(&complained(bench.ctl(&words)?, 1)?, &["is under way"])?;
    }
    let upgrade = bench.ctl(&["upgrade", "all"])?;
    says(&complained(upgrade, 1)?, &["is under way"])?;
    bench.goes_on()?;
    kill(sleeper, Signal::SIGKILL)?;
    says(&complained(first.wait_with_output()?, 1)?, &["SIGKILL"])?;
    bench.serves_on()?;
    said(bench.ctl(&["swap", "disk0"])?)?;
    bench.goes_on()?;
    bench.ends()
}

fn shut_down() -> Result<()> {
    for by_signal in [false, true] {
        let mut bench = Bench::new()?;
        let silent = bench.script("silent", "exec sleep 1000")?;
        let swap = bench.begin(&backend(&silent))?;
        bench.named("sleep")?;
        match by_signal {
            true => bench.storm.vm.signal(Signal::SIGTERM)?,
            false => drop(said(bench.ctl(&["shutdown"])?)?),
        }
        let why = complained(swap.wait_with_output()?, 1)?;
        says(&why, &["the VM ends"])?;
        bench.storm.vm.wait()?;
        bench.storm.vm.check_nothing_is_left()?;
        bench.storm.image.wait_until_free()?;
    }
    Ok(())
}

fn former_is_killed() -> Result<()> {
    let mut bench = Bench::new()?;
    let silent = bench.script("silent", "exec sleep 1000")?;
    let swap = bench.begin(&backend(&silent))?;
    bench.named("sleep")?;
    bench.storm.killer.strike(bench.first, Signal::SIGKILL)?;
    let why = complained(swap.wait_with_output()?, 1)?;
    says(&why, &["was lost meanwhile"])?;
    bench.goes_on()?;
    bench.nobody_else_is_left()?;
    let second = bench.named("outboard-blk")?;
    ensure!(second != bench.first);
    bench.is_served_by("outboard-blk", Some(second))?;
    // At whatever moment of a swap.
    for _ in 0..10 {
        let serves = bench.storm.killer.newest(&bench.storm.vm);
        let swap = bench.begin("backend=outboard-blk")?;
        bench.storm.killer.wait_a_while();
        let serves = serves.context("no back-end")?;
        bench.storm.killer.strike(serves, Signal::SIGKILL)?;
        let code = swap.wait_with_output()?.status.code();
        ensure!(matches!(code, Some(0 | 1)), "{code:?}");
        bench.goes_on()?;
        bench.nobody_else_is_left()?;
        said(bench.ctl(&["wait", "disk0", "running", "--timeout", "1m"])?)?;
    }
    bench.ends()
}

/// It is killed for it, or lost, whichever is noticed first.
fn former_hangs() -> Result<()> {
    let shape = Shape::new(0, seed()).disk(",hang-timeout=300ms");
    let mut bench = Bench::of(&shape)?;
    bench.storm.killer.strike(bench.first, Signal::SIGSTOP)?;
    let why = complained(bench.ctl(&["swap", "disk0"])?, 1)?;
    says(&why, &["was lost meanwhile"])?;
    bench.goes_on()?;
    bench.nobody_else_is_left()?;
    let device = bench.device()?;
    ensure!(device["state"] == "running" && device["restarts"] == 1);
    bench.ends()
}

fn resets() -> Result<()> {
    let shape = Shape::new(0, seed()).guest("reset_ms=60 overlap=1");
    let mut bench = Bench::of(&shape)?;
    for _ in 0..15 {
        said(bench.ctl(&["swap", "disk0"])?)?;
        bench.storm.killer.wait_a_while();
    }
    bench.goes_on()?;
    let device = bench.device()?;
    ensure!(device["restarts"] == 15, "{device}");
    bench.nobody_else_is_left()?;
    bench.ends()
}

fn wrong_use() -> Result<()> {
    let mut bench = Bench::new()?;
    for (words, says_so) in [
        (&["swap"][..], "<DEVICE>"),
        (&["swap", "disk0", "color=red"], "backend"),
        (&["swap", "disk0", "socket"], "socket=PATH"),
        (&["swap", "disk0", "socket="], "socket=PATH"),
        (&["swap", "disk0", "path=/a", "path=/b"], "twice"),
        (&["swap", "disk0", "wait=soon"], "500ms"),
        (&["swap", "disk0", "--no-such"], "--no-such"),
    ] {
        let told = complained(bench.ctl(words)?, 2)?;
        says(&told, &[says_so]).with_context(|| format!("{words:?}"))?;
    }
    let told = complained(bench.ctl(&["swap", "disk7"])?, 1)?;
    says(&told, &["disk7", "disk0"])?;
    let both = ["swap", "disk0", "socket=/a", "path=/b"];
    says(&complained(bench.ctl(&both)?, 1)?, &["excludes"])?;
    let nobody = ["swap", "disk0", "wait=10s"];
    says(&complained(bench.ctl(&nobody)?, 1)?, &["socket=PATH"])?;
    let refused = bench.ctl(&["--json", "swap", "disk0", "backend=/nowhere/blk"])?;
    ensure!(refused.stdout.is_empty(), "{refused:?}");
    says(&complained(refused, 1)?, &["/nowhere/blk"])?;
    let nowhere = bench.scripts.path().join("api");
    let nobody = ctl(&nowhere, &["swap", "disk0"])?;
    complained(nobody, 3)?;
    bench.serves_on()?;
    // What is only tried touches nothing, and says what would be.
    let tried = said(bench.ctl(&["--json", "swap", "disk0", "--dry-run"])?)?;
    let tried: Value = serde_json::from_str(&tried)?;
    ensure!(tried["gap"].is_null(), "{tried}");
    ensure!(tried["to"]["program"] == "outboard-blk", "{tried}");
    bench.serves_on()?;
    bench.ends()
}

/// The same program, as if it were of another release.
fn released(path: &Path) -> Result<String> {
    let program = Products::get()?.program("outboard-blk");
    let told = Command::new(&program).arg("--version").output()?;
    let told = String::from_utf8(told.stdout)?;
    let version = told.trim().split_once(' ').context("no version")?.1;
    let other = format!("7{}", version.get(1..).context("it is short")?);
    let mut bytes = fs::read(&program)?;
    let mut times = 0;
    let mut at = 0;
    while let Some(rest) = bytes.get_mut(at..at + version.len()) {
        if rest == version.as_bytes() {
            rest.copy_from_slice(other.as_bytes());
            times += 1;
        }
        at += 1;
    }
    ensure!(times > 0, "no {version:?} in it");
    fs::write(path, bytes)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(other)
}

fn another_release() -> Result<()> {
    let mut bench = Bench::new()?;
    let newer = bench.scripts.path().join("newer");
    let version = released(&newer)?;
    let before = bench.device()?["version"].clone();
    let answer = said(bench.ctl(&["--json", "swap", "disk0", &backend(&newer)])?)?;
    let answer: Value = serde_json::from_str(&answer)?;
    ensure!(answer["from"]["version"] == before, "{answer}");
    ensure!(answer["to"]["version"] == *version, "{answer}");
    bench.goes_on()?;
    let device = bench.device()?;
    ensure!(device["version"] == *version, "{device}");
    ensure!(
        device["program"]
            .as_str()
            .is_some_and(|it| it.ends_with("newer"))
    );
    // And when it is started again.
    said(bench.ctl(&["restart", "disk0"])?)?;
    said(bench.ctl(&["wait", "disk0", "running", "--timeout", "1m"])?)?;
    bench.goes_on()?;
    ensure!(bench.device()?["version"] == *version);
    said(bench.ctl(&["swap", "disk0", "backend=outboard-blk"])?)?;
    bench.goes_on()?;
    ensure!(bench.device()?["version"] == before);
    bench.ends()
}

fn version_1() -> Result<()> {
    let mut bench = Bench::new()?;
    let program = Products::get()?.program("outboard-blk");
    let text = format!("unset OUTBOARD_LINE\nexec '{}' \"$@\"", program.display());
    let older = bench.script("older", &text)?;
    for _ in 0..3 {
        said(bench.ctl(&["swap", "disk0", &backend(&older)])?)?;
        bench.goes_on()?;
        let device = bench.device()?;
        ensure!(device["version"].is_null(), "{device}");
        bench.nobody_else_is_left()?;
        said(bench.ctl(&["swap", "disk0", "backend=outboard-blk"])?)?;
        bench.goes_on()?;
        ensure!(bench.device()?["version"].is_string());
        bench.nobody_else_is_left()?;
    }
    // It is recovered as one that has served from the start.
    let serves = bench.storm.killer.newest(&bench.storm.vm);
    let serves = serves.context("no back-end")?;
    bench.storm.killer.strike(serves, Signal::SIGKILL)?;
    bench.goes_on()?;
    bench.ends()
}
