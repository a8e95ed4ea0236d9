//! Frames as bytes: Ethernet, ARP (RFC 826), IPv4 (RFC 791), ICMP echo (RFC 792), UDP (RFC 768), and the header that virtio puts before a frame (virtio 1.3, 5.1.6).

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Bytes before a UDP payload in an Ethernet frame with IPv4.
pub const UDP_HEADERS: usize = ETHERNET + 20 + 8;
/// An ARP frame.
pub const ARP_FRAME: usize = ETHERNET + 28;
/// IPv4's ethertype.
pub const IPV4: u16 = 0x0800;
/// ARP's ethertype.
pub const ARP: u16 = 0x0806;
/// To everybody.
pub const BROADCAST: [u8; 6] = [0xff; 6];

const UDP: u8 = 17;
const ICMP: u8 = 1;

/// virtio_net_hdr (5.1.6), little-endian.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// `Offload::NEEDS_CSUM`, `Offload::DATA_VALID`
    pub flags: u8,
    /// 0, or one of the kinds below.
    pub gso_type: u8,
    /// Bytes of all headers.
    pub hdr_len: u16,
    /// Bytes of data in a segment.
    pub gso_size: u16,
    /// Where the checksum begins.
    pub csum_start: u16,
    /// Where it is put, from there.
    pub csum_offset: u16,
}

impl Offload {
    /// VIRTIO_NET_HDR_F_NEEDS_CSUM
    pub const NEEDS_CSUM: u8 = 1;
    /// VIRTIO_NET_HDR_F_DATA_VALID
    pub const DATA_VALID: u8 = 2;
    /// VIRTIO_NET_HDR_GSO_TCPV4
    pub const TCPV4: u8 = 1;
    /// VIRTIO_NET_HDR_GSO_TCPV6
    pub const TCPV6: u8 = 4;
    /// VIRTIO_NET_HDR_GSO_ECN
    pub const ECN: u8 = 0x80;
    /// Bytes, without num_buffers.
    pub const LENGTH: usize = 10;

    /// As bytes, without num_buffers.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        bytes[2..4].copy_from_slice(&self.hdr_len.to_le_bytes());
        bytes[4..6].copy_from_slice(&self.gso_size.to_le_bytes());
        bytes[6..8].copy_from_slice(&self.csum_start.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.csum_offset.to_le_bytes());
        bytes
    }

    /// From bytes; missing ones are 0.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Offload {
        let byte = |at: usize| bytes.get(at).copied().unwrap_or(0);
        let word = |at: usize| u16::from_le_bytes([byte(at), byte(at + 1)]);
        Offload {
            flags: byte(0),
            gso_type: byte(1),
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
        }
    }
}

/// One end of a conversation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// Ethernet address.
    pub mac: [u8; 6],
    /// IPv4 address.
    pub ip: [u8; 4],
    /// UDP or TCP port.
    pub port: u16,
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    /// ARP for IPv4.
    Arp {
        /// 1 request, 2 reply.
        operation: u16,
        /// The sender; its port is 0.
        sender: End,
        /// Whose address is asked for.
        target: [u8; 4],
    },
    /// An ICMP echo request.
    Ping {
        /// The sender; its port is 0.
        from: End,
        /// To whom.
        to: [u8; 4],
        /// The ICMP message.
        message: &'a [u8],
    },
    /// UDP.
    Udp {
        /// The sender.
        from: End,
        /// To whom.
        to: End,
        /// Its data.
        payload: &'a [u8],
    },
    /// Anything else.
    Other,
    /// One of these protocols, but its lengths or checksums contradict each other.
    Bad(&'static str),
}

/// Who sent a frame with IPv4, and to whom; ports are 0.
#[must_use]
pub fn ends(frame: &[u8]) -> (End, End) {
    let end = |mac: usize, ip: usize| End {
        mac: array(frame, mac),
        ip: array(frame, ip),
        port: 0,
    };
    (end(6, 26), end(0, 30))
}

pub(crate) fn word(bytes: &[u8], at: usize) -> u16 {
    match bytes.get(at..at + 2) {
        Some(&[high, low]) => u16::from_be_bytes([high, low]),
        _ => 0,
    }
}

pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut found = [0; N];
    if let Some(part) = bytes.get(at..at + N) {
        found.copy_from_slice(part);
    }
    found
}

pub(crate) fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// The sum of 16-bit words, folded (RFC 1071); `sum` is what was summed up before.
#[must_use]
pub fn sum(bytes: &[u8], sum: u64) -> u64 {
    let mut total = sum;
    let mut words = bytes.chunks_exact(4);
    for four in &mut words {
        total += u64::from(u32::from_be_bytes([four[0], four[1], four[2], four[3]]));
    }
    let mut last = [0; 4];
    last[..words.remainder().len()].copy_from_slice(words.remainder());
    total += u64::from(u32::from_be_bytes(last));
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total
}

pub(crate) fn pseudo(addresses: &[u8], protocol: u8, length: usize) -> u64 {
    sum(addresses, u64::from(protocol) + length as u64)
}

/// What an ethertype field says; 0 if the frame is too short for one.
#[must_use]
pub fn ethertype(frame: &[u8]) -> u16 {
    word(frame, 12)
}

/// Writes an Ethernet header.
pub fn ethernet(frame: &mut [u8], from: [u8; 6], to: [u8; 6], ethertype: u16) {
    frame[0..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
    put(frame, 12, ethertype);
}

/// Writes an ARP request (`operation` 1) or reply (2) of `ARP_FRAME` bytes.
pub fn arp(frame: &mut [u8], operation: u16, from: &End, to: &End) {
    let destination = if operation == 1 { BROADCAST } else { to.mac };
    ethernet(frame, from.mac, destination, ARP);
    frame[14..20].copy_from_slice(&[0, 1, 8, 0, 6, 4]);
    put(frame, 20, operation);
    frame[22..28].copy_from_slice(&from.mac);
    frame[28..32].copy_from_slice(&from.ip);
    let asked = if operation == 1 { [0; 6] } else { to.mac };
    frame[32..38].copy_from_slice(&asked);
    frame[38..42].copy_from_slice(&to.ip);
}

pub(crate) fn ipv4(header: &mut [u8], from: &End, to: &End, protocol: u8, length: usize) {
    header[..20].fill(0);
    header[0] = 0x45;
    put(header, 2, (20 + length) as u16);
    // Do not fragment.
    put(header, 6, 0x4000);
    header[8] = 64;
    header[9] = protocol;
    header[12..16].copy_from_slice(&from.ip);
    header[16..20].copy_from_slice(&to.ip);
    let checksum = !(sum(&header[..20], 0) as u16);
    put(header, 10, checksum);
}

/// Writes the Ethernet, IPv4 and UDP headers before the payload that is in the frame already. The
/// checksum is left to whoever gets the `Offload` that is returned, or done here.
pub fn udp(frame: &mut [u8], from: &End, to: &End, offload: bool) -> Offload {
    let length = frame.len() - ETHERNET - 20;
    ethernet(frame, from.mac, to.mac, IPV4);
    ipv4(&mut frame[ETHERNET..], from, to, UDP, length);
    let partial = pseudo(&frame[26..34], UDP, length) as u16;
    let datagram = &mut frame[34..];
    put(datagram, 0, from.port);
    put(datagram, 2, to.port);
    put(datagram, 4, length as u16);
    put(datagram, 6, partial);
    if offload {
        return Offload {
            flags: Offload::NEEDS_CSUM,
            csum_start: 34,
            csum_offset: 6,
            ..Offload::default()
        };
    }
    // The pseudo-header's sum lies where the checksum goes, so it is counted too.
    let checksum = !(sum(datagram, 0) as u16);
    put(datagram, 6, if checksum == 0 { 0xffff } else { checksum });
    Offload::default()
}

/// Writes the answer to a `Packet::Ping` and returns its length; the frame must be as long as the
/// question was.
pub fn pong(frame: &mut [u8], from: &End, to: &End, message: &[u8]) -> usize {
    ethernet(frame, from.mac, to.mac, IPV4);
    ipv4(&mut frame[ETHERNET..], from, to, ICMP, message.len());
    let answer = &mut frame[34..34 + message.len()];
    answer.copy_from_slice(message);
    answer[0] = 0;
    put(answer, 2, 0);
    let checksum = !(sum(answer, 0) as u16);
    put(answer, 2, checksum);
    34 + message.len()
}

/// Takes a frame apart. Checksums are checked unless `offload` says that there is no need to (5.1.6.4.1).
#[must_use]
pub fn parse<'a>(frame: &'a [u8], offload: &Offload) -> Packet<'a> {
    match ethertype(frame) {
        ARP if frame.len() >= ARP_FRAME && frame[14..20] == [0, 1, 8, 0, 6, 4] => Packet::Arp {
            operation: word(frame, 20),
            sender: End {
                mac: array(frame, 22),
                ip: array(frame, 28),
                port: 0,
            },
            target: array(frame, 38),
        },
        IPV4 => parse_ipv4(frame, offload),
        _ => Packet::Other,
    }
}

fn parse_ipv4<'a>(frame: &'a [u8], offload: &Offload) -> Packet<'a> {
    let Some(ip) = frame.get(ETHERNET..).filter(|ip| ip.len() >= 20) else {
        return Packet::Bad("short-ip");
    };
    let (header, total) = (usize::from(ip[0] & 15) * 4, usize::from(word(ip, 2)));
    if header != 20 || ip[0] >> 4 != 4 || word(ip, 6) & 0x3fff != 0 {
        return Packet::Other;
    }
    let Some(data) = ip.get(20..total) else {
        return Packet::Bad("ip-length");
    };
    if sum(&ip[..20], 0) != 0xffff {
        return Packet::Bad("ip-checksum");
    }
    let trusted = offload.flags & (Offload::NEEDS_CSUM | Offload::DATA_VALID) != 0;
    let end = |mac: usize, ip: usize, port: usize| End {
        mac: array(frame, mac),
        ip: array(frame, ip),
        port: word(data, port),
    };
    match ip[9] {
        UDP => {
            let length = usize::from(word(data, 4));
            let Some(payload) = data.get(8..length) else {
                return Packet::Bad("udp-length");
            };
            let present = word(data, 6) != 0;
            let right = sum(&data[..length], pseudo(&ip[12..20], UDP, length)) == 0xffff;
            if present && !trusted && !right {
                return Packet::Bad("udp-checksum");
            }
            Packet::Udp {
                from: end(6, 26, 0),
                to: end(0, 30, 2),
                payload,
            }
        }
        ICMP if data.len() >= 8 && data[0] == 8 => {
            if sum(data, 0) != 0xffff {
                return Packet::Bad("icmp-checksum");
            }
            Packet::Ping {
                from: End {
                    port: 0,
                    ..end(6, 26, 0)
                },
                to: array(frame, 30),
                message: data,
            }
        }
        _ => Packet::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: End = End {
        mac: [2, 0, 0, 0, 0, 1],
        ip: [10, 0, 2, 1],
        port: 40000,
    };
    const B: End = End {
        mac: [2, 0, 0, 0, 0, 2],
        ip: [10, 0, 2, 2],
        port: 7,
    };

    #[test]
    fn the_checksum_is_that_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(sum(&bytes, 0), 0xddf2);
        assert_eq!(sum(&bytes[..7], 0), 0xddf2 - 0xf7);
    }

    #[test]
    fn a_datagram_is_read_as_it_was_written_and_every_changed_byte_is_found() {
        for length in 0..40usize {
            let mut frame = vec![0x5a; UDP_HEADERS + length];
            let offload = udp(&mut frame, &A, &B, false);
            let expected = Packet::Udp {
                from: A,
                to: B,
                payload: &vec![0x5a; length],
            };
            assert_eq!(parse(&frame, &offload), expected);
            for at in ETHERNET..frame.len() {
                let mut bad = frame.clone();
                bad[at] ^= 0x20;
                assert_ne!(parse(&bad, &offload), expected, "byte {at} of {length}");
            }
        }
    }

    #[test]
    fn an_offloaded_checksum_is_completed_by_summing_from_its_start() {
        let mut frame = vec![7; UDP_HEADERS + 33];
        let offload = udp(&mut frame, &A, &B, true);
        assert_eq!(offload.flags, Offload::NEEDS_CSUM);
        let start = usize::from(offload.csum_start);
        let checksum = !(sum(&frame[start..], 0) as u16);
        put(
            &mut frame,
            start + usize::from(offload.csum_offset),
            checksum,
        );
        assert!(matches!(
            parse(&frame, &Offload::default()),
            Packet::Udp { .. }
        ));
    }

    #[test]
    fn a_pong_answers_a_ping() {
        let mut ping = vec![0; 34];
        ethernet(&mut ping, A.mac, B.mac, IPV4);
        let mut message = vec![8, 0, 0, 0, 0x12, 0x34, 0, 1, 9, 9, 9];
        let checksum = !(sum(&message, 0) as u16);
        put(&mut message, 2, checksum);
        ipv4(&mut ping[ETHERNET..], &A, &B, ICMP, message.len());
        ping.extend_from_slice(&message);
        let Packet::Ping { from, to, message } = parse(&ping, &Offload::default()) else {
            panic!("no ping");
        };
        assert_eq!((from.ip, to), (A.ip, B.ip));
        let mut answer = vec![0; ping.len()];
        assert_eq!(pong(&mut answer, &B, &from, message), ping.len());
        assert_eq!(sum(&answer[34..], 0), 0xffff);
        assert_eq!(answer[34], 0);
        assert_eq!(parse(&answer, &Offload::default()), Packet::Other);
    }

    #[test]
    fn arp_is_read_as_it_was_written() {
        let mut frame = [0; ARP_FRAME];
        arp(&mut frame, 1, &A, &B);
        let sender = End { port: 0, ..A };
        let expected = Packet::Arp {
            operation: 1,
            sender,
            target: B.ip,
        };
        assert_eq!(parse(&frame, &Offload::default()), expected);
        assert_eq!(frame[..6], BROADCAST);
    }

    #[test]
    fn frames_of_any_length_are_taken_apart_without_a_panic() {
        for kind in [ARP, IPV4] {
            for length in 0..120 {
                let mut frame = vec![0x45; length];
                if length >= ETHERNET {
                    ethernet(&mut frame, A.mac, B.mac, kind);
                }
                let _ = parse(&frame, &Offload::default());
            }
        }
    }

    #[test]
    fn an_offload_header_keeps_its_fields() {
        let offload = Offload {
            flags: 1,
            gso_type: 0x81,
            hdr_len: 54,
            gso_size: 1448,
            csum_start: 34,
            csum_offset: 16,
        };
        assert_eq!(Offload::from_bytes(&offload.to_bytes()), offload);
    }
}
