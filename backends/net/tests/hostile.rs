//! Drivers that do what drivers should not: every chain comes back, nothing
//! crashes, and the next frame passes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "these are tests"
)]

mod support;

use std::time::Duration;

use outboard_contract::ring::{Buffer, INDIRECT, NEXT, WRITE};
use outboard_contract::soon;
use outboard_net::header::Header;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use support::*;
use virtio_bindings::virtio_net::*;

const QUIET: Duration = Duration::from_millis(100);

/// A card, its driver with buffers, and the network behind it.
struct Driven {
    driver: Driver,
    bench: Bench,
    mark: u8,
}

impl Driven {
    fn new() -> Option<Self> {
        let bench = Bench::plain()?;
        Some(Self {
            driver: bench.ready(60),
            bench,
            mark: 0,
        })
    }

    /// Frames pass, both ways, and nothing else has come out before.
    fn works(&mut self) {
        self.mark = self.mark.wrapping_add(1);
        self.driver.send(0, &frame(HOST, 60, self.mark));
        assert!(self.bench.wire.receive().1 == frame(HOST, 60, self.mark));
        self.bench.send(&frame(GUEST, 60, self.mark));
        assert!(self.driver.receive(0).1 == frame(GUEST, 60, self.mark));
        self.driver.is_whole();
        assert!(self.bench.program.is_alive());
    }
}

#[test]
fn transmit_chains_that_are_no_frames_come_back_and_nothing_is_sent() {
    let Some(mut card) = Driven::new() else {
        return;
    };
    card.driver.put(TX_DATA, &[0; 0x2_0000]);
    let part = |offset: u64, length| Buffer::readable(TX_DATA + offset, length);
    for chain in [
        &[part(0, 1)][..],
        &[part(0, 11)],
        &[part(0, 12)],
        &[part(0, 25)],
        &[part(0, 12), part(12, 13)],
        &[part(0, 0)],
        &[Buffer::writable(TX_DATA, 100)],
        &[part(0, 12), Buffer::writable(TX_DATA, 100)],
        // More than any frame.
        &[part(0, 12 + 65_554)],
        &[part(0, 0x1_0000), part(0, 0x1_0000), part(0, 0x1_0000)],
        // Not in memory, in part or at all.
        &[Buffer::readable(1 << 40, 100)],
        &[Buffer::readable(u64::MAX, 100)],
        &[part(0, 12), Buffer::readable(0x7f_ffff, 100)],
        &[Buffer::readable(0x7f_fff0, 100)],
    ] {
        card.driver.send_chain(chain);
    }
    card.works();
    // A frame in one byte after another is one.
    let content = frame(HOST, 100, 9);
    let bytes = [&[0; 12][..], &content].concat();
    card.driver.put(TX_DATA, &bytes);
    let pieces: Vec<_> = (0..112).map(|at| part(at, 1)).collect();
    card.driver.send_chain(&pieces);
    assert!(card.bench.wire.receive().1 == content);
    // More pieces than a system call takes.
    let content = frame(HOST, 1012, 10);
    let bytes = [&[0; 12][..], &content].concat();
    card.driver.put(TX_DATA, &bytes);
    let table: Vec<_> = (0..1024).map(|at| part(at, 1)).collect();
    let ring = &mut card.driver.pairs[0].tx;
    let old = ring.next_avail;
    ring.add_indirect(TX_DATA + 0x1_0000, &table).unwrap();
    ring.announce(old).unwrap();
    card.driver.sent(0);
    assert!(card.bench.wire.receive().1 == content);
    card.works();
}

#[test]
fn headers_that_lie_are_dropped() {
    let Some(mut card) = Driven::new() else {
        return;
    };
    let (good, segment) = tcp(HOST, 3000, 1000);
    for header in [
        Header {
            gso_size: 0,
            ..good
        },
        Header { flags: 0, ..good },
        Header {
            csum_start: 0xffff,
            ..good
        },
        Header {
            csum_start: 3053,
            ..good
        },
        Header {
            csum_offset: 0xffff,
            ..good
        },
        Header {
            hdr_len: 0xffff,
            ..good
        },
        Header {
            gso_type: 3,
            ..good
        },
        Header {
            gso_type: 0x80,
            ..good
        },
        Header {
            gso_type: 0x85,
            ..good
        },
        Header {
            gso_type: 0x7f,
            ..good
        },
    ] {
        card.driver.send_with(0, header, &segment);
    }
    card.works();
    // Sizes that no network has are the kernel's affair.
    for gso_size in [1, 8, 0xffff] {
        card.driver
            .send_with(0, Header { gso_size, ..good }, &segment);
    }
    while card.bench.wire.try_receive(QUIET).is_some() {}
    card.works();
}

#[test]
fn no_header_at_all_is_too_strange() {
    let Some(mut card) = Driven::new() else {
        return;
    };
    let (_, segment) = tcp(HOST, 3000, 1000);
    let mut runner = TestRunner::deterministic();
    let headers = (
        proptest::array::uniform12(any::<u8>()),
        any::<bool>(),
        14..3054usize,
    );
    for _ in 0..400 {
        let (mut bytes, plausible, length) = headers.new_tree(&mut runner).unwrap().current();
        if plausible {
            bytes[0] &= 1;
            bytes[1] = [0, 1, 4, 5, 0x81][usize::from(bytes[1]) % 5];
        }
        let header = Header::from_bytes(&bytes);
        card.driver.send_with(0, header, &segment[..length]);
    }
    while card.bench.wire.try_receive(QUIET).is_some() {}
    card.works();
}

#[test]
fn buffers_without_room_and_without_memory_are_passed_over() {
    for features in [EVERYTHING, bit(VIRTIO_NET_F_CTRL_VQ)] {
        let Some(bench) = Bench::plain() else {
            return;
        };
        let mut driver = bench.driver(features);
        let bad = [
            vec![Buffer::writable(RX_DATA, 1)],
            vec![Buffer::writable(RX_DATA, 12)],
            vec![Buffer::writable(RX_DATA, 0)],
            vec![Buffer::writable(RX_DATA, 6), Buffer::writable(RX_DATA, 6)],
            vec![Buffer::readable(RX_DATA, 2000)],
            vec![Buffer::writable(1 << 40, 2000)],
            vec![
                Buffer::writable(RX_DATA, 2000),
                Buffer::writable(u64::MAX, 2000),
            ],
        ];
        let ring = &mut driver.pairs[0].rx;
        for chain in &bad {
            ring.add(chain).unwrap();
        }
        ring.kick().unwrap();
        // They do not wait for a frame.
        for _ in &bad {
            assert_eq!(ring.wait_used(soon()).unwrap().1, 0);
        }
        // Between good ones they do, but a frame is still found whole.
        let mut heads = Vec::new();
        for chain in &bad {
            let place = RX_DATA + 0x1000 * (1 + heads.len() as u64);
            heads.push(ring.add(&[Buffer::writable(place, 60)]).unwrap());
            ring.add(chain).unwrap();
        }
        ring.kick().unwrap();
        let length = if driver.has(VIRTIO_NET_F_MRG_RXBUF) {
            200
        } else {
            40
        };
        bench.send(&frame(GUEST, length, 1));
        let mut left = length + 12;
        let mut found = 0;
        while left > 0 {
            let (head, used) = driver.pairs[0].rx.wait_used(soon()).unwrap();
            if used > 0 {
                assert_eq!(head, heads[found]);
                assert_eq!(used as usize, left.min(60));
                left -= used as usize;
                found += 1;
            }
        }
        driver.is_whole();
        // Stopping in the midst of them leaves nothing behind.
        let base = driver.client.stop_ring(0).unwrap();
        assert_eq!(base, driver.pairs[0].rx.used_idx().unwrap());
        drop(driver);
        bench.end();
    }
}

#[test]
fn malformed_rings_are_answered_or_given_up_and_a_new_driver_works() {
    let Some(mut card) = Driven::new() else {
        return;
    };
    for ring in [0, 1] {
        let pair = &mut card.driver.pairs[0];
        let ring = if ring == 0 {
            &mut pair.rx
        } else {
            &mut pair.tx
        };
        // A loop, a next beyond the table, indirect within indirect.
        for descriptor in [
            (TX_DATA, 100, NEXT, 100),
            (TX_DATA, 100, NEXT | WRITE, 9999),
            (TX_DATA, 15, INDIRECT, 0),
            (TX_DATA, 16, INDIRECT | NEXT, 0),
        ] {
            ring.set_descriptor(100, descriptor).unwrap();
            ring.offer_head(100).unwrap();
            ring.kick().unwrap();
            let (head, length) = ring.wait_used(soon()).unwrap();
            assert_eq!((head, length), (100, 0));
        }
    }
    // The receive ring has buffers from before, which are there still.
    card.works();
    // An index from nowhere.
    let tx = &card.driver.pairs[0].tx;
    tx.set_avail_idx(tx.next_avail.wrapping_add(9999)).unwrap();
    tx.kick().unwrap();
    outboard_contract::ring::wait_event(&tx.err, soon()).unwrap();
    let rx = &card.driver.pairs[0].rx;
    rx.set_avail_idx(rx.next_avail.wrapping_sub(1000)).unwrap();
    rx.kick().unwrap();
    outboard_contract::ring::wait_event(&rx.err, soon()).unwrap();
    // The next one follows when the one before has gone.
    let Driven {
        bench,
        driver,
        mark,
    } = card;
    drop(driver);
    let driver = bench.ready(60);
    Driven {
        bench,
        driver,
        mark,
    }
    .works();
}

#[test]
fn commands_that_are_none_are_answered_so() {
    let Some(mut card) = Driven::new() else {
        return;
    };
    let huge = [&[1, 0, 0, 40, 0, 0][..], &vec![2; 70_000]].concat();
    for command in [
        &[0][..],
        &[0, 0],
        &[0, 0, 1, 1],
        &[0, 9, 1],
        &[1, 0, 255, 255, 255, 255],
        &[1, 1, 2, 0, 0],
        &[2, 0, 1, 0],
        &[3, 0],
        &[4, 0, 1],
        &[4, 0, 0, 0],
        &[4, 0, 255, 255],
        &[4, 0, 2, 0],
        &[5, 0, 0],
        &[5, 0, 255, 255, 255, 255, 255, 255, 255, 255],
        &[99, 99, 99],
        &huge,
    ] {
        assert_eq!(
            card.driver.command(command),
            Some(1),
            "{:?}",
            command.get(..9)
        );
    }
    let nowhere = Buffer::writable(1 << 40, 1);
    let class = Buffer::readable(COMMAND, 2);
    for chain in [
        &[class][..],
        &[class, Buffer::writable(COMMAND, 0)],
        &[class, nowhere],
        &[nowhere],
    ] {
        assert_eq!(card.driver.command_chain(chain), 0);
    }
    let unread = [Buffer::readable(1 << 40, 3), Buffer::writable(COMMAND, 1)];
    assert_eq!(card.driver.command_chain(&unread), 1);
    assert_eq!(card.driver.get(COMMAND, 1), [1]);
    let only = [Buffer::writable(COMMAND, 1)];
    assert_eq!(card.driver.command_chain(&only), 1);
    card.works();
}
