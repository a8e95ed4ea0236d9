//! `frames`: sends one numbered frame to each of several addresses, or one TCP frame that is to be cut.

use crate::lengths::OWN;
use crate::options::{Options, Outcome};
use crate::raw::Raw;
use guest_logic::datagram::NUMBERED_ETHERTYPE;
use guest_logic::packet::{self, ETHERNET, End, Offload};
use guest_logic::segment::Segment;

/// The shortest frame of Ethernet, without its checksum.
const LENGTH: usize = 60;
/// Segments of a frame that is to be cut.
const SEGMENTS: u16 = 4;

fn address(text: &str) -> Result<[u8; 6], String> {
    let wrong = || format!("reason=bad-value key=to value={text}");
    let parts = text.split(':').map(|part| u8::from_str_radix(part, 16));
    let bytes: Vec<u8> = parts.collect::<Result<_, _>>().map_err(|_| wrong())?;
    bytes.try_into().map_err(|_| wrong())
}

fn whole(to: [u8; 6], number: u16, size: u16) -> (Offload, Vec<u8>) {
    let segment = Segment {
        number,
        total: u32::from(size * SEGMENTS),
        gso_size: size,
        ..Segment::default()
    };
    let mut frame = vec![0; segment.headers() + segment.total as usize];
    let end = |mac, last| End {
        mac,
        ip: [10, 0, 2, last],
        port: 0,
    };
    let offload = segment.write(&mut frame, &end(OWN, 254), &end(to, 2));
    (offload, frame)
}

/// `frames`
pub fn run(options: &Options) -> Outcome {
    let raw = Raw::open(options.needed("tap")?, true)?;
    let first = options.number("first", 0)? as u32;
    let size = options.number("gso", 0)? as u16;
    let mut sent = 0;
    for to in options.needed("to")?.split(',') {
        let (to, number) = (address(to)?, first.wrapping_add(sent));
        let (offload, frame) = if size > 0 {
            whole(to, number as u16, size)
        } else {
            let mut frame = vec![0; LENGTH];
            packet::ethernet(&mut frame, OWN, to, NUMBERED_ETHERTYPE);
            frame[ETHERNET..ETHERNET + 4].copy_from_slice(&number.to_le_bytes());
            (Offload::default(), frame)
        };
        if !raw.send(&offload, &frame)? {
            return Err(format!("reason=no-room sent={sent}"));
        }
        sent += 1;
    }
    Ok(format!("sent={sent}"))
}
