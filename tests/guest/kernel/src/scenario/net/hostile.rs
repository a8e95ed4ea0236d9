//! `scenario=net-hostile`: chains, headers and commands that no driver should make. The device must give
//! each chain back, write nothing beside its buffers, and serve afterwards without a reset: after each case
//! a datagram is echoed by a peer (`peer=`, UDP port 7), or at least ARP answered.

mod chains;
mod commands;
mod receive;

use super::super::{Machine, Outcome, options};
use super::Run;
use crate::net::{LONGEST, Room, control::SET_PAIRS};
use crate::platform::clock;
use crate::platform::dma;
use crate::platform::phys::Span;
use crate::say;
use crate::virtio::ring::{Buffer, Ring};
use crate::virtio::transport::Doorbell;
use alloc::string::String;
use guest_logic::datagram::{self, ECHO_PORT, FIRST_PORT, Header};
use guest_logic::packet::{End, Packet};

/// Milliseconds until a question is asked again, and how often it is.
const AGAIN: u64 = 200;
const TRIES: u64 = 300;
/// Milliseconds that a chain may take to come back.
const LIMIT: u64 = 60_000;
/// Memory for what is sent and received.
const SCRATCH: u64 = 1 << 20;
const ECHO_SIZE: usize = 300;

/// A device that serves, and a peer that notices.
struct Bench {
    run: Run,
    peer: End,
    scratch: Span,
    number: u64,
}

/// Whether `limit` milliseconds have passed since `begin`.
fn is_over(begin: u64, limit: u64) -> bool {
    clock::now().wrapping_sub(begin) > limit * clock::kilohertz()
}

/// Hands a chain to the device, whatever it is made of, and waits until it is back. True if the
/// device has said that it has written something.
fn pass(ring: &mut Ring, doorbell: Option<&Doorbell>, chain: &[Buffer]) -> Result<bool, String> {
    let Some(head) = ring.add(chain) else {
        return Err("reason=no-room".into());
    };
    ring.publish();
    doorbell.into_iter().for_each(Doorbell::ring);
    let begin = clock::now();
    loop {
        match ring.take()? {
            Some((found, written)) if found == head => return Ok(written != 0),
            Some((found, _)) => return Err(alloc::format!("reason=used-head head={found}")),
            None if is_over(begin, LIMIT) => {
                return Err(alloc::format!("reason=not-given-back {}", ring.state()));
            }
            None => core::hint::spin_loop(),
        }
    }
}

impl Bench {
    /// Takes back all that was sent properly.
    fn drain(&mut self) -> Result<(), String> {
        let transmit = &mut self.run.ports[0].out.transmit;
        let begin = clock::now();
        while !transmit.is_drained() {
            transmit.reclaim()?;
            if is_over(begin, LIMIT) {
                return Err(alloc::format!(
                    "reason=not-given-back {}",
                    transmit.ring.state()
                ));
            }
        }
        Ok(())
    }

    /// Sends a chain on the first transmit queue and waits until it is back.
    fn send(&mut self, chain: &[Buffer]) -> Result<(), String> {
        self.drain()?;
        let transmit = &mut self.run.ports[0].out.transmit;
        if pass(&mut transmit.ring, transmit.doorbell.as_ref(), chain)?
            && chain.iter().all(|buffer| !buffer.writable)
        {
            return Err("reason=written".into());
        }
        Ok(())
    }

    /// Sends a datagram for the peer to echo; its number.
    fn ask(&mut self) -> Result<u64, String> {
        let to = End {
            port: ECHO_PORT,
            ..self.peer
        };
        self.number += 1;
        let header = Header {
            number: self.number,
            stream: 0,
            acknowledge: 0,
        };
        let out = &mut self.run.ports[0].out;
        let room = out.udp(&to, FIRST_PORT, ECHO_SIZE, |payload| {
            datagram::write(payload, &header);
        })?;
        if room == Room::Full {
            out.transmit.reclaim()?;
        }
        self.run.ports[0].publish();
        Ok(self.number)
    }

    /// Whether this datagram has come back, for so many milliseconds.
    fn hear(&mut self, number: u64, limit: u64) -> Result<bool, String> {
        let begin = clock::now();
        let mut wrong = false;
        while !is_over(begin, limit) {
            let mut found = false;
            for port in &mut self.run.ports {
                while port.next(|_, _, _, packet| {
                    if let Packet::Udp { from, payload, .. } = packet
                        && from.port == ECHO_PORT
                    {
                        match datagram::check(payload) {
                            Ok(header) => found |= header.number == number,
                            Err(_) => wrong = true,
                        }
                    }
                    Ok(())
                })? {}
                port.publish();
            }
            if wrong {
                return Err("reason=wrong-data".into());
            }
            if found {
                return Ok(true);
            }
            core::hint::spin_loop();
        }
        Ok(false)
    }

    /// The device serves.
    fn works(&mut self) -> Result<(), String> {
        for _ in 0..TRIES {
            let number = self.ask()?;
            if self.hear(number, AGAIN)? {
                return Ok(());
            }
        }
        Err(alloc::format!(
            "reason=no-echo {}",
            self.run.ports[0].state()
        ))
    }

    /// After a case with this name.
    fn judge(&mut self, name: &str, outcome: Result<(), String>) -> Result<(), String> {
        say!("case {name}");
        outcome
            .and_then(|()| self.works())
            .map_err(|reason| alloc::format!("case={name} {reason}"))
    }
}

/// `scenario=net-hostile`
pub fn run(machine: &Machine<'_>) -> Outcome {
    let mut run = Run::open(machine, u16::MAX, LONGEST as u64)?;
    let peer = run.peer(&machine.words)?;
    let rounds = options::within(&machine.words, "rounds", 200, 1, 1_000_000)?;
    let mut bench = Bench {
        run,
        peer,
        scratch: dma::allocate(SCRATCH, 4096),
        number: 0,
    };
    bench.works()?;
    let chains = chains::run(&mut bench)?;
    let commands = commands::run(&mut bench)?;
    let flowing = commands::while_packets_flow(&mut bench, rounds)?;
    let pairs = bench.run.ports.len() as u16;
    if pairs > 1 {
        bench.run.net.command(SET_PAIRS, &pairs.to_le_bytes())?;
    }
    bench.works()?;
    let figures = bench.run.figures(&bench.run.ports);
    let receive = receive::run(&mut bench)?;
    Ok(alloc::format!(
        "chains={chains} commands={commands} flowing={flowing} receive={receive} {figures}"
    ))
}
