//! What a datagram, a raw frame or a segment holds, and how its reader checks it. This file has no
//! dependencies, so that a test on the host can include it by `#[path]`.
//!
//! A body is a stream of bytes that depends on two numbers, the stream and the number within it, and can
//! be checked from any offset on, so a segmented body is checked piece by piece. Bytes in the wrong place,
//! of another datagram or changed are found.
//!
//! A datagram begins with a header of 16 bytes, little-endian:
//!
//! ```text
//! 0 number: u64 | 8 stream: u16 | 10 magic: u16 | 12 acknowledge: u16 | 14 length: u16 | 16 body
//! ```
//!
//! `acknowledge` asks the reader for an answer after each so many datagrams of a stream: 8 bytes with the
//! highest number that it has seen, plus 1.

/// Bytes before the body.
pub const HEADER: usize = 16;
/// "OB"
pub const MAGIC: u16 = 0x424f;
/// Stream i of a blast goes from and to this UDP port + i.
pub const FIRST_PORT: u16 = 5001;
/// Where datagrams are echoed.
pub const ECHO_PORT: u16 = 7;
/// Where "stop" and "done sent=N" are said and answered with what was counted.
pub const CONTROL_PORT: u16 = 9;
/// Raw frames of every length have this ethertype (IEEE 802 local experimental 1).
pub const LENGTHS_ETHERTYPE: u16 = 0x88b5;
/// The ethertype of frames with a number and no content; the last of a run has the number `LAST_NUMBER`.
pub const NUMBERED_ETHERTYPE: u16 = 0x88b6;
/// See there.
pub const LAST_NUMBER: u32 = u32::MAX;
/// Bodies of raw frames belong to stream `LENGTHS_STREAM` + direction, and their number is their length.
pub const LENGTHS_STREAM: u64 = 0x1_0000;
/// Bodies of segments belong to stream `SEGMENTS_STREAM` + direction, and their number is their frame's.
pub const SEGMENTS_STREAM: u64 = 0x2_0000;
/// The directions.
pub const FROM_GUEST: u64 = 0;
/// See `FROM_GUEST`.
pub const FROM_HOST: u64 = 1;
/// Segments of a blast, whoever sends it.
pub const OF_BLAST: u64 = 2;

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

const fn mix(state: u64) -> u64 {
    let mut mixed = state.wrapping_add(GOLDEN);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The content of one body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Body {
    start: u64,
}

impl Body {
    /// The body with this number in this stream.
    #[must_use]
    pub const fn new(stream: u64, number: u64) -> Self {
        Self {
            start: mix(mix(stream) ^ number),
        }
    }

    const fn word(self, index: u64) -> u64 {
        self.start.wrapping_add(index.wrapping_mul(GOLDEN))
    }

    const fn byte(self, offset: u64) -> u8 {
        self.word(offset / 8).to_le_bytes()[(offset % 8) as usize]
    }

    /// Writes the part of the body that begins at `offset`.
    pub fn fill(self, bytes: &mut [u8], offset: u64) {
        let (head, rest) = bytes.split_at_mut(lead(offset, bytes.len()));
        for (byte, at) in head.iter_mut().zip(offset..) {
            *byte = self.byte(at);
        }
        let mut at = offset + head.len() as u64;
        let mut words = rest.chunks_exact_mut(8);
        for word in &mut words {
            word.copy_from_slice(&self.word(at / 8).to_le_bytes());
            at += 8;
        }
        for (byte, at) in words.into_remainder().iter_mut().zip(at..) {
            *byte = self.byte(at);
        }
    }

    /// The position in the body of the first wrong byte of the part that begins at `offset`.
    #[must_use]
    pub fn first_wrong(self, bytes: &[u8], offset: u64) -> Option<u64> {
        if self.holds(bytes, offset) {
            return None;
        }
        bytes
            .iter()
            .zip(offset..)
            .find(|(byte, at)| **byte != self.byte(*at))
            .map(|(_, at)| at)
    }

    fn holds(self, bytes: &[u8], offset: u64) -> bool {
        let (head, rest) = bytes.split_at(lead(offset, bytes.len()));
        let mut right = head.iter().zip(offset..).all(|(b, at)| *b == self.byte(at));
        let mut at = offset + head.len() as u64;
        let words = rest.chunks_exact(8);
        right &= words
            .remainder()
            .iter()
            .zip(at + (rest.len() as u64 & !7)..)
            .all(|(b, at)| *b == self.byte(at));
        for word in words {
            let mut found = [0; 8];
            found.copy_from_slice(word);
            right &= u64::from_le_bytes(found) == self.word(at / 8);
            at += 8;
        }
        right
    }
}

// Bytes before the next whole word of the body.
fn lead(offset: u64, length: usize) -> usize {
    (offset.wrapping_neg() as usize % 8).min(length)
}

/// A datagram's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Counted from 0 within the stream.
    pub number: u64,
    /// Which stream.
    pub stream: u16,
    /// After how many datagrams the sender wants an answer; 0: never.
    pub acknowledge: u16,
}

/// What is wrong with a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// Too short for its header, or not one of these.
    Foreign,
    /// Not of the length that it should have.
    Length {
        /// What its header says.
        expected: usize,
        /// What it has.
        found: usize,
    },
    /// A byte of the body.
    Byte {
        /// Its position in the datagram.
        at: usize,
    },
}

/// Writes a datagram as long as the slice, of `HEADER` to 65,535 bytes. A shorter one is left as it is.
pub fn write(datagram: &mut [u8], header: &Header) {
    let length = datagram.len() as u16;
    let Some((head, body)) = datagram.split_at_mut_checked(HEADER) else {
        return;
    };
    head[0..8].copy_from_slice(&header.number.to_le_bytes());
    head[8..10].copy_from_slice(&header.stream.to_le_bytes());
    head[10..12].copy_from_slice(&MAGIC.to_le_bytes());
    head[12..14].copy_from_slice(&header.acknowledge.to_le_bytes());
    head[14..16].copy_from_slice(&length.to_le_bytes());
    Body::new(u64::from(header.stream), header.number).fill(body, 0);
}

/// Checks a datagram.
///
/// # Errors
/// What is wrong with it.
pub fn check(datagram: &[u8]) -> Result<Header, Wrong> {
    let (head, body) = datagram.split_at_checked(HEADER).ok_or(Wrong::Foreign)?;
    let word = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
    if word(10) != MAGIC {
        return Err(Wrong::Foreign);
    }
    let expected = usize::from(word(14));
    if expected != datagram.len() {
        let found = datagram.len();
        return Err(Wrong::Length { expected, found });
    }
    let mut number = [0; 8];
    number.copy_from_slice(&head[..8]);
    let header = Header {
        number: u64::from_le_bytes(number),
        stream: word(8),
        acknowledge: word(12),
    };
    match Body::new(u64::from(header.stream), header.number).first_wrong(body, 0) {
        None => Ok(header),
        Some(at) => Err(Wrong::Byte {
            at: HEADER + at as usize,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(length: usize, number: u64, stream: u16) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let header = Header {
            number,
            stream,
            acknowledge: 0,
        };
        write(&mut bytes, &header);
        assert_eq!(check(&bytes), Ok(header));
        bytes
    }

    #[test]
    fn every_changed_byte_of_every_short_datagram_is_found() {
        // A body shorter than a word is too short to tell every number from every other.
        for length in HEADER + 8..100 {
            let good = datagram(length, 7, 3);
            for at in (0..length).filter(|at| !(12..14).contains(at)) {
                let mut bad = good.clone();
                bad[at] ^= 0x40;
                assert!(check(&bad).is_err(), "length {length}, byte {at}");
            }
        }
    }

    #[test]
    fn a_cut_or_padded_datagram_is_found() {
        let good = datagram(64, 1, 0);
        assert!(matches!(check(&good[..63]), Err(Wrong::Length { .. })));
        let padded = [&good[..], &[0]].concat();
        assert!(matches!(check(&padded), Err(Wrong::Length { .. })));
        assert_eq!(check(&good[..15]), Err(Wrong::Foreign));
    }

    #[test]
    fn a_body_can_be_written_and_checked_in_pieces_of_any_length() {
        let body = Body::new(SEGMENTS_STREAM, 9);
        let mut whole = vec![0; 4000];
        body.fill(&mut whole, 0);
        for piece in [1, 2, 3, 7, 8, 9, 536, 1448] {
            let mut at = 0;
            for part in whole.chunks(piece) {
                let mut again = vec![0; part.len()];
                body.fill(&mut again, at);
                assert_eq!(again, part);
                assert_eq!(body.first_wrong(part, at), None);
                // Fewer bytes can be the same by chance.
                if part.len() >= 8 {
                    assert!(body.first_wrong(part, at + 1).is_some());
                }
                at += part.len() as u64;
            }
        }
    }

    #[test]
    fn the_first_wrong_byte_is_named() {
        let body = Body::new(1, 2);
        let mut bytes = vec![0; 1000];
        body.fill(&mut bytes, 5);
        bytes[700] ^= 1;
        bytes[900] ^= 1;
        assert_eq!(body.first_wrong(&bytes, 5), Some(705));
    }
}
