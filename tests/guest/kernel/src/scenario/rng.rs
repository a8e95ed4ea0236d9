//! `scenario=rng`: reads from an entropy device (virtio 1.3, 5.4) and checks that what comes is neither
//! constant nor repeated, and that nothing behind it was written.

use super::crew::{self, Worker};
use super::verify::patience;
use super::{Machine, Outcome, options};
use crate::cpu::{apic, smp};
use crate::platform::sync::Spin;
use crate::platform::{clock, dma, phys::Span};
use crate::virtio::feature;
use crate::virtio::ring::{Buffer, Indirect, Ring};
use crate::virtio::transport::{Doorbell, NO_VECTOR, Transport};
use alloc::string::String;
use alloc::vec::Vec;

/// virtio device identity.
const KIND: u16 = 4;
const UNWRITTEN: u8 = 0xa5;

struct Reader {
    ring: Ring,
    doorbell: Doorbell,
    slots: Vec<Span>,
    free: Vec<usize>,
    owners: Vec<usize>,
    requests: u64,
    asked: u64,
    answered: u64,
    bytes: u64,
    shortest: u32,
    counts: [u64; 256],
    // The first bytes of each answer, for repetitions.
    starts: Vec<u64>,
}

impl Reader {
    fn look(&mut self, slot: usize, written: u32) -> Result<(), String> {
        // SAFETY: the device has given the buffer back, and only this worker reaches it.
        let all = unsafe { self.slots[slot].bytes() };
        let (bytes, rest) = all.split_at(written as usize);
        if bytes.is_empty() {
            return Err("reason=empty-answer".into());
        }
        if rest.iter().any(|byte| *byte != UNWRITTEN) {
            return Err(alloc::format!("reason=written-behind length={written}"));
        }
        if bytes.len() >= 16 && bytes.iter().all(|byte| *byte == bytes[0]) {
            return Err(alloc::format!("reason=constant byte={:#x}", bytes[0]));
        }
        for byte in bytes {
            self.counts[usize::from(*byte)] += 1;
        }
        for word in bytes.chunks_exact(8).take(8) {
            let mut start = [0; 8];
            start.copy_from_slice(word);
            self.starts.push(u64::from_le_bytes(start));
        }
        self.bytes += bytes.len() as u64;
        self.shortest = self.shortest.min(written);
        self.answered += 1;
        Ok(())
    }

    // Each byte value should come equally often. The square of the deviations over what is expected has a
    // mean of 255 and a standard deviation of 23: 512 is far outside for any source worth its name.
    fn deviation(&self) -> u64 {
        let expected = (self.bytes / 256).max(1);
        let squares = self.counts.iter().map(|count| {
            let off = count.abs_diff(expected);
            u128::from(off) * u128::from(off)
        });
        (squares.sum::<u128>() / u128::from(expected)) as u64
    }
}

impl Worker for Reader {
    fn step(&mut self) -> Result<bool, String> {
        let mut busy = false;
        while let Some((head, written)) = self.ring.take()? {
            let slot = self.owners[usize::from(head)];
            self.look(slot, written)?;
            self.free.push(slot);
            busy = true;
        }
        while self.asked < self.requests
            && let Some(slot) = self.free.last().copied()
        {
            let span = self.slots[slot];
            span.fill(UNWRITTEN);
            let whole = Buffer {
                address: span.address(),
                length: span.length() as u32,
                writable: true,
            };
            let Some(head) = self.ring.add(&[whole]) else {
                break;
            };
            self.owners[usize::from(head)] = slot;
            self.free.pop();
            self.asked += 1;
            busy = true;
        }
        if self.ring.publish() {
            self.doorbell.ring();
        }
        Ok(busy)
    }

    fn finished(&self) -> bool {
        self.answered == self.requests
    }

    fn ring(&mut self) -> &mut Ring {
        &mut self.ring
    }
}

// The vector of the one queue, or `NO_VECTOR`.
fn vector(transport: &Transport, polled: bool) -> u16 {
    match &transport.msix {
        Some(msix) if !polled && msix.vectors > 1 => {
            msix.enable(true);
            msix.route(1, smp::processor(0).apic_id, apic::device_vector());
            1
        }
        _ => NO_VECTOR,
    }
}

fn start(
    machine: &Machine<'_>,
    vector_of: &dyn Fn(&Transport) -> u16,
) -> Result<(Reader, bool), String> {
    let words = &machine.words;
    let transport = options::device(words, &machine.devices()?, KIND, "entropy")?;
    let mask = options::number(words, "features_mask", u64::MAX)?;
    let size = options::within(words, "size", 64, 1, 1 << 20)?;
    let depth = options::within(words, "depth", 8, 1, 256)?;
    transport.reset()?;
    let features = transport.negotiate(mask & (feature::EVENT_IDX | feature::INDIRECT_DESC))?;
    let entries = transport.queue_size(0);
    if entries == 0 {
        return Err("reason=queue-missing queue=0".into());
    }
    let mut ring = Ring::new(entries);
    ring.restart(features, Indirect::Mixed);
    let vector = vector_of(&transport);
    let doorbell = transport.start_queue(0, &ring.layout, vector)?;
    transport.driver_ok();
    let depth = depth.min(u64::from(entries));
    let reader = Reader {
        ring,
        doorbell,
        slots: (0..depth).map(|_| dma::allocate(size, 16)).collect(),
        free: (0..depth as usize).collect(),
        owners: alloc::vec![0; usize::from(entries)],
        requests: options::within(words, "requests", 1000, 1, 1 << 20)?,
        asked: 0,
        answered: 0,
        bytes: 0,
        shortest: u32::MAX,
        counts: [0; 256],
        starts: Vec::new(),
    };
    Ok((reader, vector != NO_VECTOR))
}

/// `scenario=rng`
pub fn run(machine: &Machine<'_>) -> Outcome {
    let words = &machine.words;
    machine.start_processors()?;
    let polled = words.text("mode", "irq") == "poll";
    let (reader, can_interrupt) = start(machine, &|transport| vector(transport, polled))?;
    let patience = patience(words, can_interrupt, 20)?;
    let begin = clock::now();
    let worker = [Spin::new(reader)];
    crew::run(&worker, 1, patience)?;
    let elapsed = clock::nanoseconds(clock::now().wrapping_sub(begin));
    let [worker] = worker;
    let mut done = worker.into_inner();
    done.starts.sort_unstable();
    let repeated = done
        .starts
        .windows(2)
        .filter(|two| two[0] == two[1])
        .count();
    let deviation = done.deviation();
    let line = alloc::format!(
        "requests={} bytes={} shortest={} repeated={repeated} chi_square={deviation} ns={elapsed} mode={}",
        done.answered,
        done.bytes,
        done.shortest,
        if patience.poll { "poll" } else { "irq" }
    );
    if repeated != 0 {
        return Err(alloc::format!("reason=repeated {line}"));
    }
    if done.bytes >= 1 << 14 && deviation > 512 {
        return Err(alloc::format!("reason=uneven {line}"));
    }
    Ok(line)
}
