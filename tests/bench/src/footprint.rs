//! Private memory of each process after a verified workload.
//!
//! Private_Clean and Private_Dirty of every mapping in smaps, without the
//! mappings of memfds: those are the guest's memory, not the process's.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::processes::family;
use crate::program::{Program, passed};
use crate::spread::Spread;
use crate::{Other, Products};

const WAIT: Duration = Duration::from_secs(120);
/// What each process may have, in KiB.
const TARGETS: [(&str, u64); 2] = [("machine", 5 * 1024), ("outboard-blk", 3 * 1024)];

/// What a supervisor with a control API may have, in KiB, and how many clients it has.
const WITH_API: u64 = 2 * 1024;
const CLIENTS: usize = 1000;
/// What it does at once has been done by then.
const SETTLED: Duration = Duration::from_secs(1);

/// What a VM with a disk does before its processes are looked at. Its rings stay started.
pub struct Load {
    cpus: u8,
    queues: u8,
    scenario: &'static str,
}

/// 10,000 verified requests on four queues.
pub const BUSY: Load = Load {
    cpus: 4,
    queues: 4,
    scenario: "scenario=verify requests=10000 depth=32",
};

/// One small read on each of 16 queues, so that all are there and none has had
/// anything to do: what a queue costs.
pub const IDLE: Load = Load {
    cpus: 1,
    queues: 16,
    scenario: "scenario=measure rw=randread requests=16 depth=1 size=512",
};

/// How often it is measured beside another build.
const ROUNDS: usize = 5;

/// Runs the workload and prints what each process holds afterwards; beside
/// another build several times in turn, and the ratios.
pub fn run(products: &Products, other: &Other) -> Result<()> {
    let mut ours = vec![once(products, &BUSY)?];
    let mut others = Vec::new();
    if let Some(bin) = &other.against {
        let other = products.beside(bin);
        for _ in 1..ROUNDS {
            others.push(once(&other, &BUSY)?);
            ours.push(once(products, &BUSY)?);
        }
        others.push(once(&other, &BUSY)?);
    }
    println!("private memory after 10,000 verified requests, 4 vCPUs, 4 queues, depth 32");
    let mut missed = Vec::new();
    for (place, (name, first)) in ours[0].iter().enumerate() {
        let target = TARGETS.iter().find(|(role, _)| role == name);
        let verdict = match target {
            Some((_, limit)) if first < limit => format!("under {limit}: met"),
            Some((_, limit)) => {
                missed.push(name.clone());
                format!("under {limit}: MISSED")
            }
            None => String::new(),
        };
        println!("  {name:<14} {first:>6} KiB  {verdict}");
        let ratios: Vec<f64> = ours
            .iter()
            .zip(&others)
            .filter_map(|(a, b)| Some(a.get(place)?.1 as f64 / b.get(place)?.1 as f64))
            .collect();
        if !ratios.is_empty() {
            println!("    this/another  {:.2}", Spread::new(ratios));
        }
    }
    with_api(products)?;
    if !missed.is_empty() {
        println!("  missed: {}", missed.join(", "));
    }
    Ok(())
}

/// Prints what a supervisor holds that has a control API, before, with and after many
/// clients that never come to the end of what they ask.
fn with_api(products: &Products) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("api");
    let (_image, vm) = start(products, &BUSY, Some(&socket))?;
    println!("private memory of a supervisor with --api, the same VM");
    let show = |when: &str| {
        let found = private(vm.pid())?;
        let verdict = match found < WITH_API {
            true => "met",
            false => "MISSED",
        };
        println!("  {when:<42} {found:>6} KiB  under {WITH_API}: {verdict}");
        anyhow::Ok(())
    };
    asked(&socket)?;
    show("idle")?;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = UnixStream::connect(&socket)?;
        client.write_all(b"GET /api/v1/vm HTTP/1.1\r\n")?;
        clients.push(client);
    }
    // As many are served as can be at once. A request of ours would wait behind the others,
    // each of which is given up after 10 s.
    std::thread::sleep(SETTLED);
    show(&format!("with {CLIENTS} clients, half a request each"))?;
    drop(clients);
    asked(&socket)?;
    show("after them")
}

/// Asks for the status, and has got it.
fn asked(socket: &Path) -> Result<()> {
    let mut client = UnixStream::connect(socket)?;
    client.set_read_timeout(Some(WAIT))?;
    client.write_all(b"GET /api/v1/vm HTTP/1.1\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    client.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    Ok(())
}

/// One run of a load: each process and its private memory in KiB.
pub fn once(products: &Products, load: &Load) -> Result<Vec<(String, u64)>> {
    let (_image, vm) = start(products, load, None)?;
    let mut found = Vec::new();
    for pid in family(vm.pid())? {
        found.push((role(pid)?, private(pid)?));
    }
    found.sort();
    Ok(found)
}

/// A VM that has done this, with a control API at a socket or without, and its disk.
fn start(products: &Products, load: &Load, api: Option<&Path>) -> Result<(TempDir, Program)> {
    let directory = tempfile::tempdir()?;
    let image = directory.path().join("disk.raw");
    fs::File::create(&image)
        .and_then(|file| file.set_len(256 << 20))
        .with_context(|| format!("making {}", image.display()))?;
    let Load {
        cpus,
        queues,
        scenario,
    } = load;
    let mut command = Command::new(products.bin.join("outboard"));
    command
        .args(["run", "--memory", "256M"])
        .arg(format!("--cpus={cpus}"))
        .arg(format!("--cmdline={scenario} queues={queues} exit=halt"))
        .arg("--kernel")
        .arg(&products.guest)
        .arg("--disk")
        .arg(format!("path={},queues={queues}", image.display()));
    if let Some(socket) = api {
        command.arg("--api").arg(socket);
    }
    let mut vm = Program::start(&mut command)?;
    passed(&vm.line(" result=", WAIT)?)?;
    Ok((directory, vm))
}

/// What a process is, by its command line.
fn role(pid: u32) -> Result<String> {
    let line = fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
    let mut words = line.split('\0');
    let program = words
        .next()
        .unwrap_or_default()
        .rsplit('/')
        .next()
        .unwrap_or_default();
    Ok(match (program, words.next()) {
        ("outboard", Some("run")) => "supervisor".into(),
        ("outboard", Some(other)) => other.into(),
        (other, _) => other.into(),
    })
}

/// Private memory of a process in KiB, memfd mappings excluded.
fn private(pid: u32) -> Result<u64> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let mut counted = true;
    let mut sum = 0;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("Private_Clean:" | "Private_Dirty:") if counted => {
                sum += words.next().unwrap_or("0").parse::<u64>()?;
            }
            // A mapping's first line begins with its addresses.
            Some(first) if !first.ends_with(':') => counted = !line.contains("/memfd:"),
            _ => {}
        }
    }
    Ok(sum)
}
