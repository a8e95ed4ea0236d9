//! `scenario=identify`: one line for each virtio device.

use super::{Machine, Outcome, options};
use crate::blk::{self, Blk, Request, STATUS_OK, feature};
use crate::platform::{clock, dma};
use crate::say;
use crate::virtio::ring::Indirect;
use crate::virtio::transport::{Notify, Transport};
use alloc::string::String;

const SERIAL_LENGTH: u64 = 20;
/// Milliseconds that the one request may take.
const LIMIT: u64 = 60_000;

/// Prints what there is.
pub fn run(machine: &Machine<'_>) -> Outcome {
    let mask = options::number(&machine.words, "features_mask", u64::MAX)?;
    let devices = machine.devices()?;
    for device in &devices {
        describe(device)?;
        if device.kind == blk::KIND {
            describe_disk(device, mask)?;
        }
        device.reset()?;
    }
    let started = machine.start_processors()?;
    let (regions, memory) = dma::left();
    Ok(alloc::format!(
        "devices={} processors={} started={started} regions={regions} memory_mib={} tsc_khz={}",
        devices.len(),
        machine.platform.processors.len(),
        memory >> 20,
        clock::kilohertz()
    ))
}

fn describe(device: &Transport) -> Result<(), String> {
    device.reset()?;
    let queues = device.queues();
    let mut sizes = String::new();
    for queue in 0..queues {
        let comma = if queue == 0 { "" } else { "," };
        sizes.push_str(&alloc::format!("{comma}{}", device.queue_size(queue)));
    }
    let notify = match device.notify {
        Notify::Memory(_) => "mmio",
        Notify::Port(..) => "pio",
    };
    say!(
        "device slot={}.{} id={} features={:#x} queues={queues} sizes={sizes} notify={notify} multiplier={} vectors={}",
        device.function.slot,
        device.function.number,
        device.kind,
        device.offered(),
        device.multiplier,
        device.msix.as_ref().map_or(0, |msix| msix.vectors)
    );
    Ok(())
}

fn describe_disk(device: &Transport, mask: u64) -> Result<(), String> {
    let mut disk = Blk::open(device, mask)?;
    let mut queues = disk.queues(1, 1, 4096)?;
    disk.start(queues.iter_mut(), Indirect::Always)?;
    let mut serial = [0; SERIAL_LENGTH as usize];
    let queue = &mut queues[0];
    queue.submit(
        &Request {
            kind: blk::kind::GET_ID,
            sector: 0,
            length: SERIAL_LENGTH,
        },
        &[],
    );
    queue.publish();
    let begin = clock::now();
    loop {
        if let Some(finished) = queue.take()? {
            if finished.status == STATUS_OK {
                queue.data(finished.slot).read_bytes(0, &mut serial);
            }
            break;
        }
        if clock::now().wrapping_sub(begin) > LIMIT * clock::kilohertz() {
            return Err(alloc::format!(
                "reason=timeout request=get-id {}",
                queue.ring.state()
            ));
        }
    }
    let end = serial
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(serial.len());
    let says = &disk.configuration;
    say!(
        "disk slot={} capacity={} block_size={} seg_max={} size_max={} ro={} wce={} queues={} discard={} discard_alignment={} write_zeroes={} serial={}",
        device.function.slot,
        says.capacity,
        says.block_size,
        says.seg_max,
        says.size_max,
        u8::from(disk.features & feature::RO != 0),
        u8::from(says.writeback),
        says.queues,
        says.max_discard,
        says.discard_alignment,
        says.max_write_zeroes,
        core::str::from_utf8(&serial[..end]).unwrap_or("?")
    );
    Ok(())
}
