//! The header before every frame (virtio 1.3, section 5.1.6), and what may be
//! in one.
//!
//! A driver's header is copied once and checked against the length of its
//! frame and the features that were negotiated; what reaches the kernel is the
//! copy. The kernel checks headers too, but not all of it in every version.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO,
    VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
    VIRTIO_NET_HDR_GSO_UDP_L4,
};

/// Bytes before every frame: `struct virtio_net_hdr_v1`.
pub const HEADER: usize = 12;
/// Least bytes in a frame: an Ethernet header.
pub const LEAST_FRAME: usize = 14;
/// Most bytes in a frame: the largest IP packet, an Ethernet header and a
/// VLAN tag.
pub const MOST_FRAME: usize = 65535 + LEAST_FRAME + 4;

/// The reader takes frames whose checksum is still to be computed; without it,
/// none of the other offloads.
pub const OFFLOAD_CSUM: u32 = 0x01;
/// The reader takes TCP over IPv4 that is still to be cut up.
pub const OFFLOAD_TSO4: u32 = 0x02;
/// The reader takes TCP over IPv6 that is still to be cut up.
pub const OFFLOAD_TSO6: u32 = 0x04;
/// The same, with ECN bits; only beside the former two.
pub const OFFLOAD_ECN: u32 = 0x08;
/// The reader takes UDP over IPv4 and IPv6 that is still to be cut up (Linux
/// 6.2); the kernel wants both or none.
pub const OFFLOAD_USO: u32 = 0x20 | 0x40;

const NEEDS_CSUM: u8 = VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
const DATA_VALID: u8 = VIRTIO_NET_HDR_F_DATA_VALID as u8;
const ECN: u8 = VIRTIO_NET_HDR_GSO_ECN as u8;
const NONE: u8 = VIRTIO_NET_HDR_GSO_NONE as u8;
const TCPV4: u8 = VIRTIO_NET_HDR_GSO_TCPV4 as u8;
const TCPV6: u8 = VIRTIO_NET_HDR_GSO_TCPV6 as u8;
const UDP: u8 = VIRTIO_NET_HDR_GSO_UDP_L4 as u8;

/// Whether `features` has this bit.
pub fn has(features: u64, bit: u32) -> bool {
    features.checked_shr(bit).unwrap_or(0) & 1 == 1
}

/// What is wrong with a driver's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadHeader {
    /// An offload that was not negotiated, or that there is not.
    Offload,
    /// A checksum that would lie outside the frame.
    Checksum,
    /// Segments of no size, without a checksum, or with headers that are
    /// longer than the frame.
    Segments,
}

/// A header, decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// NEEDS_CSUM, DATA_VALID.
    pub flags: u8,
    /// Kind of segments, perhaps with ECN.
    pub gso_type: u8,
    /// Bytes of all headers together; a hint.
    pub hdr_len: u16,
    /// Bytes in a segment after the headers.
    pub gso_size: u16,
    /// Where the checksum begins to count.
    pub csum_start: u16,
    /// Where the checksum is to be put, after that.
    pub csum_offset: u16,
    /// Chains that a received frame takes (MRG_RXBUF), otherwise 1.
    pub num_buffers: u16,
}

impl Header {
    /// Reads the bytes.
    pub fn from_bytes(bytes: &[u8; HEADER]) -> Self {
        let [flags, gso_type, rest @ ..] = *bytes;
        let [a, b, c, d, e, f, g, h, i, j] = rest;
        Self {
            flags,
            gso_type,
            hdr_len: u16::from_le_bytes([a, b]),
            gso_size: u16::from_le_bytes([c, d]),
            csum_start: u16::from_le_bytes([e, f]),
            csum_offset: u16::from_le_bytes([g, h]),
            num_buffers: u16::from_le_bytes([i, j]),
        }
    }

    /// Writes the bytes.
    pub fn to_bytes(self) -> [u8; HEADER] {
        let [a, b] = self.hdr_len.to_le_bytes();
        let [c, d] = self.gso_size.to_le_bytes();
        let [e, f] = self.csum_start.to_le_bytes();
        let [g, h] = self.csum_offset.to_le_bytes();
        let [i, j] = self.num_buffers.to_le_bytes();
        [self.flags, self.gso_type, a, b, c, d, e, f, g, h, i, j]
    }

    /// Checks a driver's header against its frame of `length` bytes and the
    /// negotiated features; returns the header as the kernel is to see it,
    /// without what a device is to ignore (section 5.1.6.2.2).
    ///
    /// # Errors
    /// Says what is wrong; the frame is not to be sent.
    pub fn checked(&self, length: usize, features: u64) -> Result<Self, BadHeader> {
        let checksum = self.flags & NEEDS_CSUM != 0;
        if checksum {
            if !has(features, VIRTIO_NET_F_CSUM) {
                return Err(BadHeader::Offload);
            }
            let end = usize::from(self.csum_start)
                .saturating_add(usize::from(self.csum_offset))
                .saturating_add(2);
            if end > length {
                return Err(BadHeader::Checksum);
            }
        }
        let mut checked = Self {
            flags: self.flags & NEEDS_CSUM,
            gso_type: self.gso_type,
            ..Self::default()
        };
        if checksum {
            checked.csum_start = self.csum_start;
            checked.csum_offset = self.csum_offset;
        }
        if self.gso_type == NONE {
            return Ok(checked);
        }
        if !segments_negotiated(self.gso_type, features) {
            return Err(BadHeader::Offload);
        }
        if !checksum || self.gso_size == 0 || usize::from(self.hdr_len) > length {
            return Err(BadHeader::Segments);
        }
        checked.gso_size = self.gso_size;
        checked.hdr_len = self.hdr_len;
        Ok(checked)
    }

    /// The header of a frame that the host has sent, as the driver may see
    /// it; `None` when the frame asks for more than the driver negotiated,
    /// which happens to those that waited in the tap since a former driver.
    pub fn received(&self, features: u64) -> Option<Self> {
        let offloads = offloads(features);
        let takes = |bits: u32| offloads & bits == bits;
        let segments = match self.gso_type & !ECN {
            NONE => true,
            TCPV4 => takes(OFFLOAD_TSO4),
            TCPV6 => takes(OFFLOAD_TSO6),
            UDP => takes(OFFLOAD_USO),
            _ => false,
        };
        let ecn = self.gso_type & ECN == 0 || takes(OFFLOAD_ECN);
        let checksum = self.flags & NEEDS_CSUM == 0 || takes(OFFLOAD_CSUM);
        if !(segments && ecn && checksum) {
            return None;
        }
        // Without GUEST_CSUM, all flags are 0 (section 5.1.6.4.1).
        let flags = if takes(OFFLOAD_CSUM) {
            self.flags & (NEEDS_CSUM | DATA_VALID)
        } else {
            0
        };
        Some(Self { flags, ..*self })
    }
}

/// Whether the driver may leave frames of this kind to be cut up.
fn segments_negotiated(gso_type: u8, features: u64) -> bool {
    let bit = match gso_type & !ECN {
        TCPV4 => VIRTIO_NET_F_HOST_TSO4,
        TCPV6 => VIRTIO_NET_F_HOST_TSO6,
        // ECN is TCP's.
        UDP if gso_type & ECN == 0 => VIRTIO_NET_F_HOST_USO,
        _ => return false,
    };
    let ecn = gso_type & ECN == 0 || has(features, VIRTIO_NET_F_HOST_ECN);
    has(features, bit) && ecn
}

/// What a tap may leave undone for a driver with these features
/// (`OFFLOAD_*`), or these bits of CTRL_GUEST_OFFLOADS.
pub fn offloads(features: u64) -> u32 {
    if !has(features, VIRTIO_NET_F_GUEST_CSUM) {
        return 0;
    }
    let mut bits = OFFLOAD_CSUM;
    for (feature, bit) in [
        (VIRTIO_NET_F_GUEST_TSO4, OFFLOAD_TSO4),
        (VIRTIO_NET_F_GUEST_TSO6, OFFLOAD_TSO6),
    ] {
        if has(features, feature) {
            bits |= bit;
        }
    }
    let tso = bits & (OFFLOAD_TSO4 | OFFLOAD_TSO6) != 0;
    if tso && has(features, VIRTIO_NET_F_GUEST_ECN) {
        bits |= OFFLOAD_ECN;
    }
    if has(features, VIRTIO_NET_F_GUEST_USO4) && has(features, VIRTIO_NET_F_GUEST_USO6) {
        bits |= OFFLOAD_USO;
    }
    bits
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_header() -> impl Strategy<Value = Header> {
        proptest::array::uniform12(any::<u8>()).prop_map(|bytes| Header::from_bytes(&bytes))
    }

    fn bit(bit: u32) -> u64 {
        1 << bit
    }

    fn tso() -> Header {
        Header {
            flags: NEEDS_CSUM,
            gso_type: TCPV4,
            hdr_len: 54,
            gso_size: 1448,
            csum_start: 34,
            csum_offset: 16,
            num_buffers: 0,
        }
    }

    proptest! {
        #[test]
        fn the_bytes_of_a_header_are_its_fields(header in any_header()) {
            prop_assert_eq!(Header::from_bytes(&header.to_bytes()), header);
        }

        /// Whatever passes is within the frame and was negotiated.
        #[test]
        fn what_passes_is_harmless(header in any_header(), length in 14usize..65553, features: u64) {
            if let Ok(passed) = header.checked(length, features) {
                prop_assert_eq!(passed.flags & !NEEDS_CSUM, 0);
                if passed.flags != 0 {
                    let end = usize::from(passed.csum_start) + usize::from(passed.csum_offset) + 2;
                    prop_assert!(end <= length);
                    prop_assert!(has(features, VIRTIO_NET_F_CSUM));
                }
                if passed.gso_type != NONE {
                    prop_assert!(passed.gso_size > 0 && passed.flags == NEEDS_CSUM);
                    prop_assert!(usize::from(passed.hdr_len) <= length);
                }
                // Nothing passes the second time that would not the first.
                prop_assert_eq!(passed.checked(length, features), Ok(passed));
            }
        }

        #[test]
        fn a_driver_without_offloads_sends_and_gets_plain_frames(header in any_header()) {
            if let Ok(passed) = header.checked(1500, 0) {
                prop_assert_eq!(passed, Header::default());
            }
            if let Some(passed) = header.received(0) {
                prop_assert_eq!((passed.flags, passed.gso_type), (0, NONE));
            }
        }
    }

    #[test]
    fn every_field_of_a_header_has_its_place() {
        let bytes = [1, 4, 54, 0, 0xa8, 5, 34, 0, 16, 0, 2, 1];
        let header = Header {
            flags: NEEDS_CSUM,
            gso_type: TCPV6,
            num_buffers: 0x0102,
            ..tso()
        };
        assert_eq!(Header::from_bytes(&bytes), header);
    }

    #[test]
    fn a_header_must_fit_its_frame() {
        let features = bit(VIRTIO_NET_F_CSUM) | bit(VIRTIO_NET_F_HOST_TSO4);
        assert_eq!(tso().checked(3000, features), Ok(tso()));
        assert_eq!(tso().checked(54, features), Ok(tso()));
        // The checksum's two bytes are the last ones of the frame.
        let at_the_end = Header {
            csum_start: 36,
            ..tso()
        };
        assert_eq!(at_the_end.checked(54, features), Ok(at_the_end));
        for (header, why) in [
            (
                Header {
                    hdr_len: 55,
                    ..tso()
                },
                BadHeader::Segments,
            ),
            (
                Header {
                    gso_size: 0,
                    ..tso()
                },
                BadHeader::Segments,
            ),
            (Header { flags: 0, ..tso() }, BadHeader::Segments),
            (
                Header {
                    csum_start: 37,
                    ..tso()
                },
                BadHeader::Checksum,
            ),
            (
                Header {
                    csum_start: 0xffff,
                    ..tso()
                },
                BadHeader::Checksum,
            ),
            (
                Header {
                    csum_offset: 0xffff,
                    ..tso()
                },
                BadHeader::Checksum,
            ),
            (
                Header {
                    gso_type: TCPV6,
                    ..tso()
                },
                BadHeader::Offload,
            ),
            (
                Header {
                    gso_type: TCPV4 | ECN,
                    ..tso()
                },
                BadHeader::Offload,
            ),
            (
                Header {
                    gso_type: 2,
                    ..tso()
                },
                BadHeader::Offload,
            ),
            (
                Header {
                    gso_type: 3,
                    ..tso()
                },
                BadHeader::Offload,
            ),
            (
                Header {
                    gso_type: ECN,
                    ..tso()
                },
                BadHeader::Offload,
            ),
        ] {
            assert_eq!(header.checked(54, features), Err(why), "{header:?}");
        }
        assert_eq!(tso().checked(54, 0), Err(BadHeader::Offload));
        let uso = Header {
            gso_type: UDP | ECN,
            ..tso()
        };
        assert_eq!(uso.checked(3000, u64::MAX), Err(BadHeader::Offload));
    }

    #[test]
    fn a_frame_is_cut_up_for_a_driver_that_negotiated_its_kind() {
        use VIRTIO_NET_F_HOST_ECN as F_ECN;
        for (gso_type, needed) in [
            (TCPV4, &[VIRTIO_NET_F_HOST_TSO4][..]),
            (TCPV6, &[VIRTIO_NET_F_HOST_TSO6]),
            (UDP, &[VIRTIO_NET_F_HOST_USO]),
            (TCPV4 | ECN, &[VIRTIO_NET_F_HOST_TSO4, F_ECN]),
            (TCPV6 | ECN, &[VIRTIO_NET_F_HOST_TSO6, F_ECN]),
        ] {
            let sent = Header { gso_type, ..tso() };
            let needed: u64 = needed.iter().map(|feature| bit(*feature)).sum();
            let needed = needed | bit(VIRTIO_NET_F_CSUM);
            assert_eq!(sent.checked(3000, needed), Ok(sent), "{gso_type:#x}");
            for missing in (0..64).map(bit).filter(|bit| needed & bit != 0) {
                let refused = sent.checked(3000, !missing);
                assert_eq!(refused, Err(BadHeader::Offload), "{gso_type:#x}");
            }
        }
    }

    #[test]
    fn a_driver_gets_what_it_takes_and_no_flag_but_those_that_there_are() {
        use VIRTIO_NET_F_GUEST_CSUM as F_CSUM;
        use VIRTIO_NET_F_GUEST_ECN as F_ECN;
        let kinds = [
            (NONE, &[F_CSUM][..]),
            (TCPV4, &[F_CSUM, VIRTIO_NET_F_GUEST_TSO4]),
            (TCPV6, &[F_CSUM, VIRTIO_NET_F_GUEST_TSO6]),
            (
                UDP,
                &[F_CSUM, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6],
            ),
            (TCPV4 | ECN, &[F_CSUM, VIRTIO_NET_F_GUEST_TSO4, F_ECN]),
            (TCPV6 | ECN, &[F_CSUM, VIRTIO_NET_F_GUEST_TSO6, F_ECN]),
        ];
        for (gso_type, needed) in kinds {
            let left = Header { gso_type, ..tso() };
            let needed: u64 = needed.iter().map(|feature| bit(*feature)).sum();
            assert_eq!(left.received(needed), Some(left), "{gso_type:#x}");
            for missing in (0..64).map(bit).filter(|bit| needed & bit != 0) {
                assert_eq!(left.received(!missing), None, "{gso_type:#x}");
            }
        }
        let unknown = Header {
            gso_type: 2,
            ..tso()
        };
        assert_eq!(unknown.received(u64::MAX), None);
        let flags = |flags, features| {
            let found = Header {
                flags,
                ..Header::default()
            }
            .received(features);
            found.map(|header| header.flags)
        };
        let both = NEEDS_CSUM | DATA_VALID;
        assert_eq!(flags(0xff, bit(F_CSUM)), Some(both));
        assert_eq!(flags(0xff, 0), None);
        assert_eq!(flags(!NEEDS_CSUM, 0), Some(0));
    }

    #[test]
    fn a_tap_leaves_undone_only_what_the_driver_takes_and_the_kernel_knows() {
        let tso = bit(VIRTIO_NET_F_GUEST_TSO4) | bit(VIRTIO_NET_F_GUEST_ECN);
        assert_eq!(offloads(tso), 0);
        let csum = bit(VIRTIO_NET_F_GUEST_CSUM);
        assert_eq!(offloads(csum), 1);
        assert_eq!(offloads(csum | bit(VIRTIO_NET_F_GUEST_ECN)), 1);
        assert_eq!(offloads(csum | tso), 1 | 2 | 8);
        assert_eq!(offloads(csum | bit(VIRTIO_NET_F_GUEST_USO4)), 1);
        assert_eq!(offloads(u64::MAX), 0x6f);
        let left = Header {
            gso_type: TCPV4,
            ..Header::default()
        };
        assert_eq!(left.received(csum), None);
        assert_eq!(left.received(csum | tso), Some(left));
    }
}
