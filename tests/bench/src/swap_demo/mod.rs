//! `scripts/demo swap`: one guest under load that checks every byte, and what serves its
//! disk and its card replaced meanwhile, in words, with a line each second and a picture.
//!
//! ```text
//! disk: outboard-blk ──► qemu-storage-daemon ──► outboard-blk ──► SIGKILL ──► outboard-blk
//! card: tap0 ──► tap1, two ports of one bridge
//! ```
//!
//! - [`load`]: the guest's progress, and the events under it;
//! - [`picture`]: the timeline as an SVG.

mod load;
mod picture;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use nix::sys::signal::Signal;
use outboard_e2e::eventually;
use outboard_e2e::network::{self, Peer, ip};
use outboard_e2e::storm::daemon::{self, Daemon};
use outboard_e2e::storm::{self, Gap, Outcome, Programs, Shape, Storm};
use serde_json::Value;

use load::{Event, Load};
use picture::{Panel, count};

/// The guest works for so long before each event, and after the last.
const BETWEEN: Duration = Duration::from_secs(2);
/// The guest's words. It tells of so many gaps that those of the events are among them on a
/// busy machine too, whose guests wait for many reasons.
const WORDS: &str = "report=10 gaps=500";

/// What is shown.
#[derive(Args)]
pub struct Options {
    /// The picture.
    #[arg(long)]
    svg: PathBuf,
    /// Where the guest's disk is made.
    #[arg(long)]
    folder: PathBuf,
    /// Show the card too: in this network namespace a bridge with two taps is made.
    #[arg(long)]
    card: bool,
    /// Leave out qemu-storage-daemon: all back-ends are ours.
    #[arg(long)]
    ours: bool,
}

/// Shows all.
///
/// # Errors
/// Something was not done, or the guest has found something wrong.
pub fn run(options: &Options) -> Result<()> {
    let mut shape = Shape::new(0, 1).disk(",profile=portable");
    shape.folder.clone_from(&options.folder);
    shape = shape.guest(WORDS);
    if options.card {
        bridge()?;
        shape.more = vec![("--net".into(), "tap=tap0".into())];
        shape = shape.guest("scenario=storm,net-storm retry_ms=20 awake=1");
    }
    println!(
        "A guest with two processors reads, writes and flushes its disk, 64 requests in flight\n\
         on two queues. It knows what each block must hold and checks every byte that it reads.\n\
         \n$ outboard run --kernel guest-pvh --cpus 2 --memory 256M \\\n    \
         --disk path=disk.img,queues=2{} --api api{}",
        shape.disk,
        if options.card { " --net tap=tap0" } else { "" }
    );
    let echo = match options.card {
        true => Some(Peer::listening("echo")?),
        false => None,
    };
    let mut storm = Storm::begin(&Programs::get()?, &shape)?;
    storm.killer.note();
    let ago = storm.killer.kills.pop().unwrap_or_default();
    let mut load = Load::begun("storm", "requests", "requests", ago);
    disk(&mut storm, &mut load, options)?;
    let mut loads = vec![load];
    storm.stop()?;
    if options.card {
        storm.vm.console_line("begun scenario=net-storm")?;
        let mut load = Load::begun("net-storm", "answered", "answers", Duration::ZERO);
        card(&mut storm, &mut load)?;
        loads.push(load);
        Peer::run("stop --to 10.0.2.2")?.passed()?;
    }
    let outcome = storm.end()?.nothing_is_wrong()?;
    drop(echo);
    tell(&outcome, &loads, options)
}

/// A switch with two ports, tap0 and tap1, and this machine behind it.
fn bridge() -> Result<()> {
    ip("link add br0 type bridge forward_delay 0")?;
    for tap in ["tap0", "tap1"] {
        network::tap(tap, "")?;
        ip(&format!("link set {tap} master br0"))?;
    }
    ip("addr add 10.0.2.1/24 dev br0")?;
    ip("link set br0 up")
}

/// The disk's events.
fn disk(storm: &mut Storm, load: &mut Load, options: &Options) -> Result<()> {
    load.listen(&mut storm.vm, BETWEEN)?;
    let daemon = if options.ours {
        say("The disk goes to another process of the same program, as an upgrade does it.");
        swap(storm, load, "outboard-blk → outboard-blk", &["disk0"])?;
        None
    } else {
        say(
            "The disk goes to QEMU's storage daemon, a program that others wrote, on the same image.\n\
             It is started, connected and lent the guest's memory while outboard-blk still serves.",
        );
        let socket = storm.image.directory().join("qsd.sock");
        println!(
            "$ {} --blockdev file,filename=disk.img,locking=off,… \\\n    \
             --export vhost-user-blk,addr.path=qsd.sock,writable=on,num-queues=2,… &",
            daemon::PROGRAM
        );
        let daemon = Daemon::start(storm.image.path(), socket, false)?;
        let words = format!("socket={}", daemon.socket().display());
        swap(
            storm,
            load,
            "outboard-blk → qemu-storage-daemon",
            &["disk0", &words],
        )?;
        Some(daemon)
    };
    load.listen(&mut storm.vm, BETWEEN)?;
    if let Some(daemon) = daemon {
        say("And back, to a new outboard-blk.");
        swap(
            storm,
            load,
            "qemu-storage-daemon → outboard-blk",
            &["disk0"],
        )?;
        // It has nothing of the guest's any more.
        daemon.kill()?;
        load.listen(&mut storm.vm, BETWEEN)?;
    }
    say("Now outboard-blk is killed without a warning. Another is started on what was in flight.");
    kill(storm, load)?;
    load.listen(&mut storm.vm, BETWEEN)
}

/// The card's event.
fn card(storm: &mut Storm, load: &mut Load) -> Result<()> {
    say(
        "The guest has ended its work on the disk and sends datagrams by its card, 32 under way,\n\
         each again until it is answered with the right bytes.",
    );
    load.listen(&mut storm.vm, BETWEEN)?;
    say(
        "The card goes from tap0 to tap1, another port of the same bridge. Frames may be lost, as\n\
         when a cable is moved, until the kernel has seen that tap1 is in use; the guest sends\n\
         them again after 20 ms.",
    );
    swap_by(
        storm,
        load,
        "card: tap0 → tap1",
        &["peer", "net0", "tap=tap1"],
    )?;
    load.listen(&mut storm.vm, BETWEEN)
}

fn say(words: &str) {
    println!("\n{words}");
}

fn swap(storm: &Storm, load: &mut Load, title: &str, words: &[&str]) -> Result<()> {
    let words = [&["swap"], words].concat();
    swap_by(storm, load, title, &words)
}

/// Does this by `outboard ctl`, and prints how long nobody served.
fn swap_by(storm: &Storm, load: &mut Load, title: &str, words: &[&str]) -> Result<()> {
    let shown = words.join(" ");
    let folder = format!("{}/", storm.image.directory().display());
    println!("$ outboard ctl {}", shown.replace(&folder, ""));
    let asked = load.now();
    let said = storm
        .ctl(words)
        .with_context(|| format!("{title}: {}", storm.vm.messages()))?;
    let over = load.now();
    let swapped: Value = serde_json::from_str(&said)?;
    let part = |name: &str| {
        let micros = swapped["gap"][format!("{name}_us")].as_u64();
        let micros = micros.with_context(|| format!("no gap: {swapped}"))?;
        Ok::<_, anyhow::Error>(Duration::from_micros(micros))
    };
    let unserved = part("total")?;
    let mut parts = Vec::new();
    for name in ["stop", "drain", "rest", "start"] {
        parts.push(format!("{name} {}", millis(part(name)?)));
    }
    println!(
        "  {title}: nobody served for {} ({}); all took {}",
        millis(unserved),
        parts.join(", "),
        millis(over.saturating_sub(asked))
    );
    load.events.push(Event {
        title: title.into(),
        asked,
        over,
        unserved: Some(unserved),
    });
    Ok(())
}

/// Kills what serves the disk, and waits until another does.
fn kill(storm: &mut Storm, load: &mut Load) -> Result<()> {
    let device = storm.status()?["devices"][0].take();
    let pid = device["pid"].as_i64().context("nobody serves the disk")?;
    println!("$ kill -KILL {pid}");
    let asked = load.now();
    let pid = i32::try_from(pid)?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL)?;
    let next = eventually("another back-end serves the disk", || {
        let device = storm.status()?["devices"][0].take();
        let serves = device["state"] == "running" && device["pid"] != pid;
        Ok(serves.then(|| device["pid"].clone()))
    })?;
    let over = load.now();
    println!(
        "  restored: process {next} serves, after {} at most",
        millis(over.saturating_sub(asked))
    );
    load.events.push(Event {
        title: "outboard-blk killed, restored".into(),
        asked,
        over,
        unserved: None,
    });
    Ok(())
}

/// What the guest says of all, in words and as a picture.
fn tell(outcome: &Outcome, loads: &[Load], options: &Options) -> Result<()> {
    let number = |word: &str| outcome.result.number(word).map(count);
    say(&format!(
        "The guest has found nothing wrong: {} requests, every completion came once and with\n\
         success, no byte that it read was old, torn or another block's. The image holds what it must.",
        number("requests")?
    ));
    if options.card {
        let result = outcome.ended.result("net-storm")?.passed()?;
        println!(
            "{} datagrams, each answered with the right bytes; {} were sent again.",
            count(result.number("answered")?),
            count(result.number("again")?)
        );
    }
    let gaps = gaps(&outcome.ended.console)?;
    let mut panels = Vec::new();
    println!(
        "\n{:<40}{:>15}{:>18}",
        "", "nobody served", "the guest waited"
    );
    for (load, gaps) in loads.iter().zip(&gaps) {
        for event in &load.events {
            let gap = event.gap(gaps);
            let waited = gap.map_or("not noticed".into(), |gap| millis(gap.length));
            let unserved = event.unserved.map_or(String::new(), millis);
            println!("{:<40}{unserved:>15}{waited:>18}", event.title);
            panels.push(Panel {
                title: &event.title,
                what: load.what,
                at: event.asked,
                gap,
                samples: &load.samples,
            });
        }
    }
    println!(
        "Nobody served: from the order to stop until the successor has all queues; the guest goes on with\n\
         the first. The guest waited: its longest time between two completions meanwhile."
    );
    std::fs::write(&options.svg, picture::svg(&panels))
        .with_context(|| format!("writing {}", options.svg.display()))?;
    println!("\nCompletions around each event: {}", options.svg.display());
    Ok(())
}

/// The gaps that the guest tells of, of its disk and of its card.
fn gaps(console: &str) -> Result<[Vec<Gap>; 2]> {
    let parts = console.split_once("begun scenario=net-storm");
    let (disk, card) = parts.unwrap_or((console, ""));
    let gaps = [storm::gaps(disk)?, storm::gaps(card)?];
    ensure!(!gaps[0].is_empty(), "the guest tells of no gap: {console}");
    Ok(gaps)
}

fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}
