//! What of a device's configuration a driver may write.
//!
//! A back-end may end its session over a write to anything else (libvhost-user
//! does), so a guest could end its VM by one: it is not passed on.

use outboard_protocol::devices::{BLK, BlkConfig, Kind, NET, RNG};
use virtio_bindings::virtio_blk::VIRTIO_BLK_F_CONFIG_WCE;

/// Whether a driver with these features may write that: of a disk the byte that
/// turns its cache on and off (virtio 1.3, section 5.2.4), nothing of a card
/// (5.1.4) or a source of entropy (5.4.4). Of other kinds nothing is known.
pub fn is_writable(kind: &Kind, features: u64, offset: u32, data: &[u8]) -> bool {
    match kind.virtio_id {
        BLK => {
            let agreed = features >> VIRTIO_BLK_F_CONFIG_WCE & 1 == 1;
            agreed && offset == BlkConfig::WRITEBACK && matches!(data, [0 | 1])
        }
        NET | RNG => false,
        _ => true,
    }
}

/// The byte that such a write sets a disk's cache to.
pub fn cache_byte(kind: &Kind, offset: u32, data: &[u8]) -> Option<u8> {
    match data {
        [byte] if kind.virtio_id == BLK && offset == BlkConfig::WRITEBACK => Some(*byte),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_writes_what_it_may_and_no_more() {
        let cache = 1 << VIRTIO_BLK_F_CONFIG_WCE;
        let disk = Kind::blk();
        assert!(is_writable(&disk, cache, 32, &[0]));
        assert!(is_writable(&disk, cache, 32, &[1]));
        for (features, offset, data) in [
            (0, 32, &[1][..]),
            (cache, 32, &[2]),
            (cache, 32, &[1, 0]),
            (cache, 0, &[0; 8]),
            (cache, 34, &[1, 0]),
        ] {
            assert!(!is_writable(&disk, features, offset, data), "{offset}");
        }
        assert!(!is_writable(&Kind::net(), !0, 0, &[2]));
        assert!(!is_writable(&Kind::rng(), !0, 0, &[2]));
        assert!(is_writable(&Kind::unnamed(18, 8), 0, 1, &[2]));
        assert!(is_writable(&Kind::unnamed(2, 60), cache, 32, &[1]));
    }
}
