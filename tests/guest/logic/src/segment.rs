//! Hand-made TCP frames that a device or the host cuts into segments (TCP: RFC 9293, IPv6: RFC 8200; the
//! cutting: virtio 1.3, 5.1.6.2), and their segments.

use crate::packet::{
    ETHERNET, End, IPV4, Offload, array, ethernet, ethertype, ipv4, pseudo, put, sum, word,
};

/// IPv6's ethertype.
pub const IPV6: u16 = 0x86dd;
const TCP: u8 = 6;

/// A TCP header's fields that a segment of ours uses. Those that segmentation copies into each segment
/// describe the whole, and the sequence number says where in it a segment lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// IPv6, else IPv4.
    pub v6: bool,
    /// The frame's number modulo 65,536: the destination port.
    pub number: u16,
    /// Bytes of data in the whole: the acknowledgement number.
    pub total: u32,
    /// Bytes of data in a segment: the window.
    pub gso_size: u16,
    /// Where in the whole this lies: the sequence number.
    pub offset: u32,
    /// After how many frames the sender wants an answer, 0: never. The urgent pointer, which counts for
    /// nothing without its flag.
    pub acknowledge: u16,
    /// The flag CWR, which segmentation leaves on the first segment alone.
    pub ecn: bool,
}

/// The longest frame that a host passes on whole: longer ones its network stack cuts before any device
/// sees them. An answer to a longer frame is as long as this.
pub const LONGEST_WHOLE: usize = 65_535;

/// The source port of segments.
pub const SEGMENT_PORT: u16 = 7001;
const TCP_HEADER: usize = 20;

impl Segment {
    /// Bytes of data in the answer to a whole.
    #[must_use]
    pub fn answer_total(&self) -> u32 {
        self.total.min((LONGEST_WHOLE - self.headers()) as u32)
    }

    /// Bytes of the headers in front of the data.
    #[must_use]
    pub fn headers(&self) -> usize {
        ETHERNET + if self.v6 { 40 } else { 20 } + TCP_HEADER
    }

    /// Writes the headers of the whole before the data that is in the frame already, and says how it is to
    /// be cut.
    pub fn write(&self, frame: &mut [u8], from: &End, to: &End) -> Offload {
        let start = self.headers() - TCP_HEADER;
        let length = frame.len() - start;
        let partial = if self.v6 {
            ethernet(frame, from.mac, to.mac, IPV6);
            let ip = &mut frame[ETHERNET..start];
            ip.fill(0);
            ip[0] = 0x60;
            put(ip, 4, length as u16);
            (ip[6], ip[7]) = (TCP, 64);
            ip[8..24].copy_from_slice(&v6(from));
            ip[24..40].copy_from_slice(&v6(to));
            pseudo(&ip[8..40], TCP, length)
        } else {
            ethernet(frame, from.mac, to.mac, IPV4);
            ipv4(&mut frame[ETHERNET..], from, to, TCP, length);
            pseudo(&frame[26..34], TCP, length)
        };
        let tcp = &mut frame[start..start + TCP_HEADER];
        tcp.fill(0);
        put(tcp, 0, SEGMENT_PORT);
        put(tcp, 2, self.number);
        tcp[4..8].copy_from_slice(&self.offset.to_be_bytes());
        tcp[8..12].copy_from_slice(&self.total.to_be_bytes());
        tcp[12] = (TCP_HEADER as u8 / 4) << 4;
        // ACK, and CWR.
        tcp[13] = 0x10 | if self.ecn { 0x80 } else { 0 };
        put(tcp, 14, self.gso_size);
        put(tcp, 16, partial as u16);
        put(tcp, 18, self.acknowledge);
        let kind = if self.v6 {
            Offload::TCPV6
        } else {
            Offload::TCPV4
        };
        Offload {
            flags: Offload::NEEDS_CSUM,
            gso_type: kind | if self.ecn { Offload::ECN } else { 0 },
            hdr_len: self.headers() as u16,
            gso_size: self.gso_size,
            csum_start: start as u16,
            csum_offset: 16,
        }
    }

    /// Takes a whole or a segment apart: its headers and its data. `None` if it is none of ours.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse<'a>(
        frame: &'a [u8],
        offload: &Offload,
    ) -> Result<Option<(Segment, &'a [u8])>, &'static str> {
        let kind = ethertype(frame);
        let (start, protocol, addresses, length) = match kind {
            IPV4 if frame.len() >= 54 && frame[14] == 0x45 => (
                34,
                frame[23],
                26..34,
                usize::from(word(frame, 16)).wrapping_sub(20),
            ),
            IPV6 if frame.len() >= 74 => (54, frame[20], 22..54, usize::from(word(frame, 18))),
            _ => return Ok(None),
        };
        if protocol != TCP || word(frame, start) != SEGMENT_PORT {
            return Ok(None);
        }
        if kind == IPV4 && sum(&frame[14..34], 0) != 0xffff {
            return Err("ip-checksum");
        }
        let tcp = length
            .checked_add(start)
            .and_then(|end| frame.get(start..end))
            .filter(|tcp| tcp.len() >= TCP_HEADER)
            .ok_or("ip-length")?;
        let partial = pseudo(&frame[addresses], TCP, length);
        if offload.flags & Offload::NEEDS_CSUM != 0 {
            // A whole that nobody has cut: only the pseudo-header is summed up yet.
            if u64::from(word(tcp, 16)) != partial {
                return Err("partial-checksum");
            }
            if usize::from(offload.csum_start) != start || offload.csum_offset != 16 {
                return Err("csum-start");
            }
        } else if offload.flags & Offload::DATA_VALID == 0 && sum(tcp, partial) != 0xffff {
            return Err("tcp-checksum");
        }
        let segment = Segment {
            v6: kind == IPV6,
            number: word(tcp, 2),
            offset: u32::from_be_bytes(array(tcp, 4)),
            total: u32::from_be_bytes(array(tcp, 8)),
            gso_size: word(tcp, 14),
            acknowledge: word(tcp, 18),
            ecn: tcp[13] & 0x80 != 0,
        };
        Ok(Some((segment, &tcp[TCP_HEADER..])))
    }
}

// fd00::a.b.c.d
fn v6(end: &End) -> [u8; 16] {
    let mut address = [0; 16];
    address[0] = 0xfd;
    address[12..].copy_from_slice(&end.ip);
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: End = End {
        mac: [2, 0, 0, 0, 0, 1],
        ip: [10, 0, 2, 1],
        port: 0,
    };
    const B: End = End {
        mac: [2, 0, 0, 0, 0, 2],
        ip: [10, 0, 2, 2],
        port: 0,
    };

    #[test]
    fn a_segment_is_read_as_it_was_written_whole_or_finished() {
        for v6 in [false, true] {
            let segment = Segment {
                v6,
                number: 77,
                total: 5000,
                gso_size: 1448,
                offset: 0,
                acknowledge: 3,
                ecn: v6,
            };
            let mut frame = vec![3; segment.headers() + 5000];
            let offload = segment.write(&mut frame, &A, &B);
            let data = vec![3; 5000];
            assert_eq!(
                Segment::parse(&frame, &offload),
                Ok(Some((segment, &data[..])))
            );
            let mut without = offload;
            without.flags = 0;
            assert_eq!(Segment::parse(&frame, &without), Err("tcp-checksum"));
            let start = usize::from(offload.csum_start);
            let checksum = !(sum(&frame[start..], 0) as u16);
            put(&mut frame, start + 16, checksum);
            assert_eq!(
                Segment::parse(&frame, &without),
                Ok(Some((segment, &data[..])))
            );
            assert_eq!(Segment::parse(&frame, &offload), Err("partial-checksum"));
        }
    }

    #[test]
    fn frames_of_any_length_are_taken_apart_without_a_panic() {
        for kind in [IPV4, IPV6] {
            for length in ETHERNET..120 {
                let mut frame = vec![0x45; length];
                ethernet(&mut frame, A.mac, B.mac, kind);
                let _ = Segment::parse(&frame, &Offload::default());
            }
        }
    }
}
