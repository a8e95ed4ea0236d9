//! What the machine itself looks at in a ring, and in a configuration space:
//! where a ring lies, how far its device has come, how many queues there are.

use std::sync::atomic::Ordering;

use outboard_protocol::devices;
use outboard_protocol::launch;
use vm_memory::{Bytes, GuestAddress};

use crate::machine::memory::Ram;
use crate::machine::virtio::Ring;

/// Offset of `num_queues` in a block device's configuration (virtio 1.3,
/// section 5.2.4).
const BLK_NUM_QUEUES: usize = 34;

/// Whether a ring is aligned and lies in guest memory, each part in one piece
/// (virtio 1.3, section 2.7).
pub fn is_placed(ring: &Ring, ram: &Ram) -> bool {
    let size = u64::from(ring.size);
    let parts = [
        (ring.descriptors, 16, 16 * size),
        (ring.available, 2, 6 + 2 * size),
        (ring.used, 4, 6 + 8 * size),
    ];
    parts.iter().all(|(address, alignment, length)| {
        let inside = |region: &crate::machine::memory::Region| {
            let start = address.checked_sub(region.guest_phys);
            let end = start.and_then(|start| start.checked_add(*length));
            end.is_some_and(|end| end <= region.size)
        };
        address.is_multiple_of(*alignment) && ram.regions().iter().any(inside)
    })
}

/// The used index: how many chains the device has returned, modulo 65536.
pub fn used_index(ring: &Ring, ram: &Ram) -> Option<u16> {
    let address = GuestAddress(ring.used.checked_add(2)?);
    let index: u16 = ram.guest().load(address, Ordering::Acquire).ok()?;
    Some(u16::from_le(index))
}

/// Makes the configuration agree with the number of queues that the driver can
/// reach, which may be fewer than the back-end has or than it says there.
pub fn limit_queues(config: &mut [u8], spec: &launch::Device, served: u16) {
    if spec.kind.virtio_id != devices::BLK {
        return;
    }
    if let Some(field) = config.get_mut(BLK_NUM_QUEUES..BLK_NUM_QUEUES + 2)
        && let &mut [low, high] = field
    {
        let queues = u16::from_le_bytes([low, high]).min(served);
        field.copy_from_slice(&queues.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use outboard_protocol::devices::{BlkConfig, Kind};

    use super::*;
    use crate::machine::memory::Backing;

    #[test]
    fn a_ring_must_be_aligned_and_in_memory_as_a_whole() {
        let ram = Ram::new(4 << 20, Backing::default()).unwrap();
        let good = Ring {
            index: 0,
            size: 256,
            descriptors: 0x1000,
            available: 0x2000,
            used: 0x3000,
        };
        assert!(is_placed(&good, &ram));
        let end = 4 << 20;
        let last = Ring {
            descriptors: end - 4096,
            available: end - 518,
            used: end - 2056,
            ..good
        };
        assert!(is_placed(&last, &ram), "up to the last byte");
        for bad in [
            Ring {
                descriptors: 0x1008,
                ..good
            },
            Ring {
                available: 0x2001,
                ..good
            },
            Ring {
                used: 0x3002,
                ..good
            },
            Ring {
                descriptors: end - 4080,
                ..good
            },
            Ring {
                available: end - 516,
                ..good
            },
            Ring {
                used: end - 2052,
                ..good
            },
            Ring { used: end, ..good },
            Ring { used: !3, ..good },
            Ring {
                descriptors: 0xc000_0000,
                ..good
            },
        ] {
            assert!(!is_placed(&bad, &ram), "{bad:x?}");
        }
    }

    #[test]
    fn a_disk_never_says_more_queues_than_the_driver_can_reach() {
        let mut spec = launch::Device {
            id: "disk0".into(),
            kind: Kind::blk(),
            queues: 2,
            fewer: false,
            queue_size: 64,
            ring: launch::Ring::Kvm,
        };
        let of = |num_queues| BlkConfig {
            num_queues,
            capacity: 8,
            ..BlkConfig::default()
        };
        for (has, says) in [(1, 1), (2, 2), (4, 2), (u16::MAX, 2)] {
            let mut config = of(has).to_bytes();
            limit_queues(&mut config, &spec, 2);
            assert_eq!(config, of(says).to_bytes());
        }
        limit_queues(&mut [0; 20], &spec, 2);
        spec.kind = Kind::unnamed(4, 60);
        let mut config = [0xff; 60];
        limit_queues(&mut config, &spec, 2);
        assert_eq!(config, [0xff; 60]);
    }
}
