//! Whether a disk can go on with another back-end: a driver goes by what it has read of
//! the configuration (virtio 1.3, section 5.2.4), and reads it again only where it is told
//! to. So a limit may grow and not shrink, and hints may be others.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_GEOMETRY, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
};

/// Bytes in a sector, in which a capacity is counted.
const SECTOR: u64 = 512;

/// Which capacity a disk may have with another back-end. The driver is told of another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Capacity {
    /// The same: it is swapped, and nobody has said that it is to change.
    Same,
    /// Or a larger one: its image may have grown just before its back-end was lost.
    Larger,
    /// Any: whoever has it swapped has said so.
    Any,
}

/// A field that a driver goes by which has acknowledged a feature.
struct Field {
    feature: u32,
    offset: usize,
    size: usize,
    /// It is a limit, and may be larger.
    may_grow: bool,
    name: &'static str,
}

const FIELDS: [Field; 9] = [
    limit(VIRTIO_BLK_F_SIZE_MAX, 8, 4, "bytes in a segment"),
    limit(VIRTIO_BLK_F_SEG_MAX, 12, 4, "segments in a request"),
    same(VIRTIO_BLK_F_GEOMETRY, 16, 4, "geometry"),
    same(VIRTIO_BLK_F_BLK_SIZE, 20, 4, "bytes in a block"),
    limit(VIRTIO_BLK_F_MQ, 34, 2, "queues"),
    limit(VIRTIO_BLK_F_DISCARD, 36, 4, "sectors in a discard"),
    limit(VIRTIO_BLK_F_DISCARD, 40, 4, "segments in a discard"),
    limit(
        VIRTIO_BLK_F_WRITE_ZEROES,
        48,
        4,
        "sectors in a write-zeroes",
    ),
    limit(
        VIRTIO_BLK_F_WRITE_ZEROES,
        52,
        4,
        "segments in a write-zeroes",
    ),
];

const fn limit(feature: u32, offset: usize, size: usize, name: &'static str) -> Field {
    Field {
        may_grow: true,
        ..same(feature, offset, size, name)
    }
}

const fn same(feature: u32, offset: usize, size: usize, name: &'static str) -> Field {
    Field {
        feature,
        offset,
        size,
        may_grow: false,
        name,
    }
}

/// Why a driver with these features that has seen the first configuration cannot go on with
/// the second.
pub(crate) fn clash(
    features: u64,
    (seen, now): (&[u8], &[u8]),
    capacity: Capacity,
) -> Option<String> {
    let [known, has] = [seen, now].map(|config| number(config, 0, 8).saturating_mul(SECTOR));
    let fits = match capacity {
        Capacity::Same => has == known,
        Capacity::Larger => has >= known,
        Capacity::Any => true,
    };
    if !fits {
        return Some(format!(
            "the back-end's disk has {has} bytes, and the driver knows {known}: make both the same, or \
             swap it with `--resize`, which tells the driver"
        ));
    }
    let concerned = FIELDS
        .iter()
        .filter(|field| features & (1 << field.feature) != 0);
    let mut clashes = concerned.filter_map(|field| {
        let [known, has] = [seen, now].map(|config| number(config, field.offset, field.size));
        let fits = has == known || field.may_grow && has > known;
        (!fits).then_some((field, known, has))
    });
    let (field, known, has) = clashes.next()?;
    let advice = match (field.may_grow, field.feature) {
        (_, VIRTIO_BLK_F_MQ) => "give it as many queues",
        (true, _) => {
            "a disk with `profile=portable` offers from the start what stock programs share"
        }
        (false, _) => "use the settings that served before",
    };
    Some(format!(
        "the back-end has {has} {}, and the driver goes by {known}: {advice}",
        field.name
    ))
}

/// A little-endian number of that many bytes, 0 where there is none.
fn number(config: &[u8], offset: usize, size: usize) -> u64 {
    let bytes = config.iter().skip(offset).take(size);
    bytes
        .rev()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use outboard_protocol::devices::BlkConfig;

    use super::*;

    fn seen() -> BlkConfig {
        BlkConfig {
            capacity: 16,
            seg_max: 126,
            blk_size: 512,
            num_queues: 2,
            max_discard_sectors: 32768,
            max_discard_seg: 1,
            max_write_zeroes_sectors: 32768,
            max_write_zeroes_seg: 1,
            ..BlkConfig::default()
        }
    }

    fn found(now: BlkConfig, features: u64, capacity: Capacity) -> Option<String> {
        let (seen, now) = (seen().to_bytes(), now.to_bytes());
        clash(features, (&seen, &now), capacity)
    }

    #[test]
    fn a_limit_may_grow_and_a_hint_may_be_another() {
        let larger = BlkConfig {
            seg_max: 1024,
            num_queues: 4,
            max_discard_sectors: 1 << 21,
            max_discard_seg: 32,
            max_write_zeroes_sectors: 1 << 21,
            max_write_zeroes_seg: 32,
            ..seen()
        };
        assert_eq!(found(larger, !0, Capacity::Same), None);
        let hints = BlkConfig {
            physical_block_exp: 3,
            min_io_size: 8,
            opt_io_size: 64,
            discard_sector_alignment: 8,
            write_zeroes_may_unmap: 1,
            writeback: 1,
            ..seen()
        };
        assert_eq!(found(hints, !0, Capacity::Same), None);
    }

    #[test]
    fn what_a_driver_goes_by_does_not_shrink_and_what_it_does_not_use_may() {
        let one = |change: fn(&mut BlkConfig)| {
            let mut now = seen();
            change(&mut now);
            now
        };
        let cases: [(BlkConfig, &str); 7] = [
            (
                one(|it| it.seg_max = 125),
                "125 segments in a request, and the driver goes by 126",
            ),
            (one(|it| it.blk_size = 4096), "4096 bytes in a block"),
            (
                one(|it| it.num_queues = 1),
                "1 queues, and the driver goes by 2: give it",
            ),
            (
                one(|it| it.max_discard_sectors = 8),
                "8 sectors in a discard",
            ),
            (one(|it| it.max_discard_seg = 0), "0 segments in a discard"),
            (
                one(|it| it.max_write_zeroes_sectors = 8),
                "8 sectors in a write-zeroes",
            ),
            (
                one(|it| it.max_write_zeroes_seg = 0),
                "0 segments in a write-zeroes",
            ),
        ];
        for (now, words) in cases {
            let text = found(now, !0, Capacity::Any).unwrap();
            assert!(text.contains(words), "{text}");
            assert_eq!(
                found(now, 0, Capacity::Same),
                None,
                "the driver has no use for it"
            );
        }
        let smaller = one(|it| it.max_discard_seg = 0);
        assert!(
            found(smaller, !0, Capacity::Same)
                .unwrap()
                .contains("`profile=portable`")
        );
    }

    #[test]
    fn another_capacity_is_for_a_swap_that_says_so() {
        let now = BlkConfig {
            capacity: 32,
            ..seen()
        };
        let text = found(now, 0, Capacity::Same).unwrap();
        assert!(
            text.contains("16384 bytes, and the driver knows 8192"),
            "{text}"
        );
        assert!(text.contains("`--resize`"), "{text}");
        assert_eq!(found(now, !0, Capacity::Any), None);
        assert_eq!(found(now, !0, Capacity::Larger), None);
        let now = one_sector();
        assert!(found(now, 0, Capacity::Larger).is_some());
        assert_eq!(found(now, 0, Capacity::Any), None);
    }

    fn one_sector() -> BlkConfig {
        BlkConfig {
            capacity: 1,
            ..seen()
        }
    }
}
