//! `blast`: numbered datagrams to the guest, one socket and thread for each stream, as fast as they go, at
//! a rate, or at most `--window` ahead of the guest's acknowledgements; then asks what it received. With
//! `--tap` and `--gso`, segments in TCP frames of `--size` bytes of data instead, through a packet socket.

use crate::batch;
use crate::options::{Options, Outcome, rate};
use crate::raw::Raw;
use crate::udp;
use guest_logic::datagram::{self, Body, FIRST_PORT, HEADER, Header, OF_BLAST, SEGMENTS_STREAM};
use guest_logic::packet::{self, BROADCAST, End, Packet};
use guest_logic::segment::Segment;
use std::net::{Ipv4Addr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

/// Without an acknowledgement for this long, a full window lets one more datagram through.
const PROBE: Duration = Duration::from_millis(50);

#[derive(Clone, Copy)]
struct Plan {
    to: Ipv4Addr,
    size: usize,
    requests: u64,
    window: u64,
    /// Of each stream; zero: none.
    pause: Duration,
    end: Instant,
}

impl Plan {
    fn goes_on(&self, sent: u64) -> bool {
        sent < self.requests && (sent == 0 || Instant::now() < self.end)
    }

    // How many more datagrams may go at once; one, to ask again, when the window is full.
    fn together(&self, sent: u64, acknowledged: u64) -> u64 {
        let left = self.requests - sent;
        match self.window {
            0 => left,
            window => left.min((acknowledged + window).saturating_sub(sent).max(1)),
        }
    }

    // After how many datagrams an answer is wanted.
    fn acknowledge(&self) -> u16 {
        (self.window / 4).clamp(u64::from(self.window != 0), 0xffff) as u16
    }

    // Waits until datagram `number` is due.
    fn keep_pace(&self, began: Instant, number: u64) {
        if self.pause.is_zero() {
            return;
        }
        let due = began + self.pause * u32::try_from(number).unwrap_or(u32::MAX);
        if let Some(wait) = due.checked_duration_since(Instant::now()) {
            thread::sleep(wait);
        }
    }
}

fn stream(plan: &Plan, socket: &UdpSocket, stream: u16) -> Result<u64, String> {
    socket
        .connect((plan.to, FIRST_PORT + stream))
        .map_err(|error| format!("reason=connect error=\"{error}\""))?;
    // Nothing is gained by many at a time when they are to go at a rate.
    let most = if plan.pause.is_zero() {
        batch::cut(socket, plan.size)
    } else {
        1
    };
    let mut most = most as u64;
    let mut payload = vec![0; plan.size * most as usize];
    let (mut number, mut acknowledged) = (0, 0);
    let began = Instant::now();
    while plan.goes_on(number) {
        if plan.window != 0 && number >= acknowledged + plan.window {
            let mut answer = [0; 64];
            if let Some((8, _)) = udp::receive(socket, &mut answer)? {
                let mut next = [0; 8];
                next.copy_from_slice(&answer[..8]);
                acknowledged = acknowledged.max(u64::from_le_bytes(next));
                continue;
            }
        }
        plan.keep_pace(began, number);
        let count = plan.together(number, acknowledged).min(most);
        let payload = &mut payload[..plan.size * count as usize];
        for (number, datagram) in (number..).zip(payload.chunks_exact_mut(plan.size)) {
            let header = Header {
                number,
                stream,
                acknowledge: plan.acknowledge(),
            };
            datagram::write(datagram, &header);
        }
        match socket.send(payload) {
            Ok(_) => number += count,
            // No room in the device's queue, or nobody answered for the address yet.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ENOBUFS | libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::EINTR)
                ) =>
            {
                thread::yield_now();
            }
            // The kernel or the device does not cut them up.
            Err(_) if most > 1 => {
                batch::do_not_cut(socket)?;
                most = 1;
            }
            Err(error) => return Err(format!("reason=send error=\"{error}\"")),
        }
    }
    Ok(number)
}

fn segments(plan: &Plan, options: &Options) -> Result<u64, String> {
    let mut raw = Raw::open(options.needed("tap")?, true)?;
    let gso = options.number("gso", 1448)?.clamp(1, 65_000) as u16;
    let from = End {
        mac: [2, 0, 0, 0, 0, 0xfe],
        ip: [10, 0, 2, 254],
        port: 0,
    };
    let to = End {
        mac: BROADCAST,
        ip: plan.to.octets(),
        port: 0,
    };
    let (mut number, mut acknowledged) = (0, 0);
    let began = Instant::now();
    let mut frame = Vec::new();
    while plan.goes_on(number) {
        if plan.window != 0 && number >= acknowledged + plan.window {
            let before = acknowledged;
            let end = Instant::now() + PROBE;
            while acknowledged == before && Instant::now() < end {
                if let Some((offload, frame)) = raw.receive(PROBE)?
                    && let Packet::Udp { to, payload, .. } = packet::parse(frame, &offload)
                    && let Ok(next) = <[u8; 8]>::try_from(payload)
                    && to.port == FIRST_PORT
                {
                    acknowledged = acknowledged.max(u64::from_le_bytes(next));
                }
            }
            if acknowledged != before {
                continue;
            }
        }
        plan.keep_pace(began, number);
        let segment = Segment {
            v6: options.number("v6", 0)? == 1,
            number: number as u16,
            total: plan.size as u32,
            gso_size: gso,
            acknowledge: plan.acknowledge(),
            ..Segment::default()
        };
        let headers = segment.headers();
        frame.resize(headers + plan.size, 0);
        let body = Body::new(SEGMENTS_STREAM + OF_BLAST, u64::from(segment.number));
        body.fill(&mut frame[headers..], 0);
        let offload = segment.write(&mut frame, &from, &to);
        if raw.send(&offload, &frame)? {
            number += 1;
        } else {
            thread::yield_now();
        }
    }
    Ok(number)
}

/// `blast`
pub fn run(options: &Options) -> Outcome {
    let streams = options.number("streams", 1)?.clamp(1, 32);
    let cut = options.get("gso").is_some();
    let otherwise = if cut { 65_160 } else { 1472 };
    let size = options
        .number("size", otherwise)?
        .clamp(HEADER as u64, 65_400) as usize;
    let requests = match options.number("requests", 0)? {
        0 => u64::MAX,
        requests => requests.div_ceil(streams),
    };
    let pause = match options.number("rate", 0)? {
        0 => Duration::ZERO,
        rate => Duration::from_secs(1) * streams as u32 / rate as u32,
    };
    // The guest is up, and no datagram has to wait for its Ethernet address.
    if udp::tell(options, "hello")?.is_none() {
        return Err("reason=no-answer-to-hello".to_owned());
    }
    let plan = Plan {
        to: options.address("to")?,
        size,
        requests,
        window: options.number("window", 0)?,
        pause,
        end: match options.number("millis", 0)? {
            0 => options.deadline()?,
            millis => Instant::now() + Duration::from_millis(millis),
        },
    };
    let began = Instant::now();
    let sent = if cut {
        segments(&plan, options)?
    } else {
        let sockets = (0..streams as u16)
            .map(|stream| udp::open(options.bind()?, FIRST_PORT + stream, PROBE))
            .collect::<Result<Vec<_>, _>>()?;
        thread::scope(|scope| {
            let threads: Vec<_> = (0u16..)
                .zip(&sockets)
                .map(|(number, socket)| {
                    let plan = &plan;
                    scope.spawn(move || stream(plan, socket, number))
                })
                .collect();
            threads.into_iter().try_fold(0, |sum, thread| {
                let sent = thread.join().map_err(|_| "reason=panic".to_owned())??;
                Ok::<u64, String>(sum + sent)
            })
        })?
    };
    let elapsed = began.elapsed();
    let line = format!(
        "size={size} sent={sent} bytes={} ns={} pps={} bps={}",
        sent * size as u64,
        elapsed.as_nanos(),
        rate(sent, elapsed),
        rate(sent * size as u64 * 8, elapsed)
    );
    let Some(answer) = udp::tell(options, &format!("done sent={sent}"))? else {
        return Err(format!("reason=no-answer-to-done {line}"));
    };
    let guest: Vec<String> = answer
        .split_ascii_whitespace()
        .map(|word| format!("guest_{word}"))
        .collect();
    let line = format!("{line} {}", guest.join(" "));
    match udp::word(&answer, "wrong") {
        Some(0) => Ok(line),
        _ => Err(format!("reason=wrong-data {line}")),
    }
}
