//! The host's end of the guest's network cards: a tap each, in the tests' own
//! network, and TCP.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow, ensure};
use outboard_e2e::{PATIENCE, eventually};

/// A tap with an address. Dropped, it is gone.
#[derive(Debug)]
pub struct Tap {
    name: String,
    subnet: String,
}

impl Tap {
    /// A tap in subnet 10.77.`number`.0/24, for so many pairs of queues.
    pub fn new(number: u8, pairs: u16) -> Result<Self> {
        let tap = Self {
            name: format!("peers{number}"),
            subnet: format!("10.77.{number}"),
        };
        let many = if pairs > 1 { " multi_queue" } else { "" };
        let name = &tap.name;
        ip(&format!("tuntap add dev {name} mode tap{many}"))?;
        ip(&format!("addr add {}/24 dev {name}", tap.host()))?;
        ip(&format!("link set {name} up"))?;
        Ok(tap)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Turns it `up` or `down`.
    pub fn turn(&self, link: &str) -> Result<()> {
        ip(&format!("link set {} {link}", self.name))
    }

    /// The host's address.
    pub fn host(&self) -> String {
        format!("{}.1", self.subnet)
    }

    /// The guest's.
    pub fn guest(&self) -> String {
        format!("{}.2", self.subnet)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = ip(&format!("link del {}", self.name));
    }
}

fn ip(words: &str) -> Result<()> {
    let output = Command::new("ip").args(words.split(' ')).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {words}: {said}");
    Ok(())
}

/// Whoever connects gets back what he sends, once he has sent it all.
#[derive(Debug)]
pub struct Echo {
    port: u16,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    pub fn start(tap: &Tap) -> Result<Self> {
        let listener = TcpListener::bind((tap.host(), 0)).context("listening on the tap")?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => drop(thread::spawn(move || echo(stream))),
                    Err(_) => thread::sleep(std::time::Duration::from_millis(2)),
                }
            }
        });
        Ok(Self {
            port,
            stop,
            thread: Some(thread),
        })
    }

    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A stream that fails is noticed at the other end.
fn echo(mut stream: TcpStream) {
    let mut bytes = Vec::new();
    let limited = stream
        .set_nonblocking(false)
        .and_then(|()| stream.set_read_timeout(Some(PATIENCE)))
        .and_then(|()| stream.set_write_timeout(Some(PATIENCE)));
    if limited.is_ok() && stream.read_to_end(&mut bytes).is_ok() {
        let _ = stream.write_all(&bytes);
    }
}

/// Sends `bytes` to the guest's `port` as soon as something listens there,
/// and checks that it sends the same back.
pub fn compared(tap: &Tap, port: u16, bytes: &[u8]) -> Result<()> {
    let mut stream = eventually("the guest listens", || {
        Ok(TcpStream::connect((tap.guest(), port)).ok())
    })?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut sender = stream.try_clone()?;
    let answer = thread::scope(|scope| {
        let sent = scope.spawn(move || {
            sender.write_all(bytes)?;
            sender.shutdown(Shutdown::Write)
        });
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).context("reading back")?;
        sent.join().map_err(|_| anyhow!("the sender panicked"))??;
        anyhow::Ok(answer)
    })?;
    ensure!(
        answer == bytes,
        "{} bytes sent, {} others came back",
        bytes.len(),
        answer.len()
    );
    Ok(())
}

/// A peer of a card, on a stream of frames: whoever is asked for in the guest is this
/// one, and answers pings. Dropped, it is gone.
#[derive(Debug)]
pub struct Peer {
    stream: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl Peer {
    /// The next card that connects.
    pub fn meet(listener: &UnixListener) -> Result<Self> {
        listener.set_nonblocking(true)?;
        let (stream, _) = eventually("a card connects", || Ok(listener.accept().ok()))?;
        stream.set_nonblocking(false)?;
        let mut frames = stream.try_clone()?;
        let thread = Some(thread::spawn(move || {
            while let Ok(frame) = frame(&mut frames) {
                let Some(answer) = answer(&frame) else {
                    continue;
                };
                let length = (answer.len() as u32).to_be_bytes();
                if frames.write_all(&[&length[..], &answer].concat()).is_err() {
                    break;
                }
            }
        }));
        Ok(Self { stream, thread })
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn frame(stream: &mut UnixStream) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut frame)?;
    Ok(frame)
}

/// The answer to a question by ARP, or to a ping.
fn answer(frame: &[u8]) -> Option<Vec<u8>> {
    const OWN: &[u8] = &[2, 0, 0, 0, 0, 0x99];
    let part = |range| frame.get(range);
    let (asker, kind) = (part(6..12)?, part(12..14)?);
    match kind {
        [8, 6] if part(20..22)? == [0, 1] => {
            let (asked, asking) = (part(38..42)?, part(22..32)?);
            Some([asker, OWN, part(12..20)?, &[0, 2], OWN, asked, asking].concat())
        }
        // Without options, to be answered.
        [8, 0] if part(14..15)? == [0x45] && part(23..24)? == [1] && part(34..35)? == [8] => {
            let (from, to) = (part(26..30)?, part(30..34)?);
            let sum = u16::from_be_bytes(part(36..38)?.try_into().ok()?);
            let (sum, carry) = sum.overflowing_add(0x800);
            let sum = (sum + u16::from(carry)).to_be_bytes();
            let head = [asker, OWN, part(12..26)?, to, from, &[0, 0], &sum].concat();
            Some([&head, frame.get(38..)?].concat())
        }
        _ => None,
    }
}
