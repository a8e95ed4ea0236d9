use outboard_protocol::devices::BlkConfig;
use outboard_protocol::kept::{CardState, DiskState, Kept};
use outboard_runtime::device::{Change, Device as _, Queue as _};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES,
};

use super::*;
use crate::image::Options;
use crate::request::MAX_SEGMENTS;

fn file(size: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(size).unwrap();
    file
}

fn blk(file: &tempfile::NamedTempFile, settings: Settings, read_only: bool) -> Blk {
    let options = Options {
        read_only,
        ..Options::default()
    };
    let image = Image::open(file.path(), options).unwrap();
    Blk::new(Disk::new(Storage::Image(image), settings).unwrap())
}

/// The driver writes the byte, and what comes of it is waited for.
fn set_writeback(blk: &Blk, value: u8) -> io::Result<()> {
    if let Change::After(mut preparation) = blk.write_config(BlkConfig::WRITEBACK, &[value])? {
        preparation.prepare()?;
        preparation.commit();
    }
    Ok(())
}

fn has(features: u64, bit: u32) -> bool {
    features & (1 << bit) != 0
}

#[test]
fn a_disk_offers_what_its_image_can() {
    let file = file(1 << 20);
    let features = blk(&file, Settings::default(), false).features();
    for bit in [
        VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_BLK_SIZE,
        VIRTIO_BLK_F_TOPOLOGY,
        VIRTIO_BLK_F_CONFIG_WCE,
        VIRTIO_BLK_F_MQ,
        VIRTIO_BLK_F_FLUSH,
        VIRTIO_BLK_F_WRITE_ZEROES,
    ] {
        assert!(has(features, bit), "bit {bit}");
    }
    assert!(!has(features, VIRTIO_BLK_F_RO));
    let features = blk(&file, Settings::default(), true).features();
    assert!(has(features, VIRTIO_BLK_F_RO));
    for bit in [
        VIRTIO_BLK_F_CONFIG_WCE,
        VIRTIO_BLK_F_DISCARD,
        VIRTIO_BLK_F_WRITE_ZEROES,
    ] {
        assert!(!has(features, bit), "bit {bit} of a read-only disk");
    }
}

#[test]
fn the_configuration_says_what_is_true() {
    let file = file(3 << 20);
    let settings = Settings {
        queues: 4,
        queue_size: 64,
        ..Settings::default()
    };
    let blk = blk(&file, settings, false);
    let config = blk.0.config();
    assert_eq!(config.capacity, 6144);
    assert_eq!(config.blk_size, 512);
    assert_eq!(config.seg_max, 62);
    assert_eq!(config.num_queues, 4);
    assert_eq!(config.writeback, 1);
    assert_eq!(
        u32::from(config.min_io_size) * 512,
        512 << config.physical_block_exp
    );
    assert_eq!(config.max_write_zeroes_seg, MAX_SEGMENTS);
    assert_eq!(blk.config(), config.to_bytes());
    assert_eq!((blk.queues(), blk.max_queue_size()), (4, 64));
    assert_eq!(blk.virtio_id(), 2);
}

#[test]
fn the_smallest_queue_still_has_room_for_data() {
    let file = file(512);
    let settings = Settings {
        queue_size: 2,
        ..Settings::default()
    };
    assert_eq!(blk(&file, settings, false).0.config().seg_max, 1);
}

/// What it says beside qemu-storage-daemon's is in `tests/contract`.
#[test]
fn a_portable_disk_keeps_to_the_bounds_that_it_shows() {
    let file = file(1 << 30);
    let portable = || Settings {
        profile: Profile::Portable,
        ..Settings::default()
    };
    let disk = blk(&file, portable(), false);
    let (config, bounds) = (disk.0.config(), disk.0.limits().bounds);
    assert_eq!(
        (config.max_discard_sectors, config.max_discard_seg),
        (32768, 1)
    );
    assert_eq!(
        (bounds.discard, bounds.write_zeroes, bounds.segments),
        (
            config.max_discard_sectors,
            config.max_write_zeroes_sectors,
            1
        )
    );
    assert_eq!(disk.0.serial(), b"vhost_user_blk\0\0\0\0\0\0");
    let features = disk.features();
    drop(disk);
    // Also where the file system has no holes.
    let mut image = Image::open(file.path(), Options::default()).unwrap();
    image.discard = false;
    let without = Disk::new(Storage::Image(image), portable()).unwrap();
    assert_eq!(without.features(), features);
    assert_eq!(without.config(), config);
}

#[test]
fn what_no_portable_disk_has_is_refused() {
    let refused = |settings| {
        let size = 1 << 20;
        let block_size = 512;
        let disk = Disk::new(Storage::Null { size, block_size }, settings);
        disk.unwrap_err().to_string()
    };
    let portable = || Settings {
        profile: Profile::Portable,
        ..Settings::default()
    };
    let serial = "S1".to_owned();
    let error = refused(Settings {
        serial,
        ..portable()
    });
    assert!(error.contains("exclude each other"), "{error}");
    let queue_size = 64;
    let error = refused(Settings {
        queue_size,
        ..portable()
    });
    assert!(error.contains("--queue-size=128"), "{error}");
}

#[test]
fn a_driver_turns_the_cache_off_and_a_reset_restores_it() {
    let file = file(1 << 20);
    for initially in [false, true] {
        let settings = Settings {
            writeback: initially,
            ..Settings::default()
        };
        let blk = blk(&file, settings, false);
        let shown = |blk: &Blk| blk.config()[BlkConfig::WRITEBACK as usize];
        assert_eq!(shown(&blk), u8::from(initially));
        for value in [0, 1, 0] {
            set_writeback(&blk, value).unwrap();
            assert_eq!(shown(&blk), value);
        }
        set_writeback(&blk, (!initially).into()).unwrap();
        blk.reset(0);
        assert_eq!(shown(&blk), u8::from(initially));
    }
}

#[test]
fn a_cache_turned_off_before_the_driver_is_ready_stays_off() {
    let file = file(1 << 20);
    let blk = blk(&file, Settings::default(), false);
    blk.reset(0);
    set_writeback(&blk, 0).unwrap();
    // DRIVER_OK: the front-end says what was acknowledged.
    blk.reset(blk.features());
    assert_eq!(blk.config()[BlkConfig::WRITEBACK as usize], 0);
    assert!(!blk.0.durability.writeback());
}

/// What is kept of a disk, as another process reads it.
fn kept(blk: &Blk) -> Kept {
    let text = serde_json::to_string(&blk.kept()).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn a_successor_shows_the_cache_that_its_driver_was_shown_until_a_reset() {
    let file = file(1 << 20);
    for initially in [false, true] {
        let settings = || Settings {
            writeback: initially,
            ..Settings::default()
        };
        let shown = |blk: &Blk| blk.config()[BlkConfig::WRITEBACK as usize];
        for value in [0, 1] {
            let predecessor = blk(&file, settings(), false);
            set_writeback(&predecessor, value).unwrap();
            let kept = kept(&predecessor);
            drop(predecessor);
            let successor = blk(&file, settings(), false);
            successor.restore(&kept).unwrap();
            assert_eq!(shown(&successor), value);
            assert_eq!(successor.0.durability.write_through(), value == 0);
            // Its driver's features are acknowledged again.
            successor.reset(successor.features());
            assert_eq!(shown(&successor), value);
            assert_eq!(successor.kept(), kept);
            successor.reset(0);
            assert_eq!(shown(&successor), u8::from(initially));
        }
    }
}

#[test]
fn a_failed_sync_outlives_its_process_and_every_reset() {
    let file = file(1 << 20);
    let predecessor = blk(&file, Settings::default(), false);
    drop(predecessor.0.durability.begin().unwrap());
    let kept = kept(&predecessor);
    drop(predecessor);
    let successor = blk(&file, Settings::default(), false);
    successor.restore(&kept).unwrap();
    for features in [successor.features(), 0] {
        successor.reset(features);
        assert!(successor.0.durability.begin().is_none());
        assert!(set_writeback(&successor, 0).is_err());
    }
    // And the process after that one.
    assert_eq!(successor.kept(), kept);
}

#[test]
fn a_cache_that_was_not_yet_off_is_kept_on() {
    let file = file(1 << 20);
    let predecessor = blk(&file, Settings::default(), false);
    let change = predecessor.write_config(BlkConfig::WRITEBACK, &[0]);
    let on = DiskState {
        writeback: true,
        sync_failed: false,
    };
    assert_eq!(kept(&predecessor), Kept::Disk(on));
    drop(change);
}

#[test]
fn what_was_kept_of_another_kind_changes_nothing() {
    let file = file(1 << 20);
    let disk = blk(&file, Settings::default(), false);
    let before = disk.kept();
    for other in [Kept::Nothing, Kept::Card(CardState::default())] {
        assert!(disk.restore(&other).unwrap_err().contains("another kind"));
    }
    assert_eq!(disk.kept(), before);
}

#[test]
fn nothing_else_of_the_configuration_can_be_written() {
    let file = file(1 << 20);
    let writable = blk(&file, Settings::default(), false);
    let before = writable.config();
    for (offset, data) in [
        (0, &[1][..]),
        (31, &[0, 0]),
        (32, &[]),
        (32, &[0, 0]),
        (33, &[0]),
        (u32::MAX, &[0]),
    ] {
        let error = writable.write_config(offset, data).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
    assert_eq!(writable.config(), before);
    drop(writable);
    let read_only = blk(&file, Settings::default(), true);
    assert!(read_only.write_config(BlkConfig::WRITEBACK, &[0]).is_err());
}

#[test]
fn the_cache_is_not_off_before_what_was_written_is_synced() {
    let file = file(1 << 20);
    let blk = blk(&file, Settings::default(), false);
    blk.0.durability.lose();
    assert!(
        set_writeback(&blk, 0).is_err(),
        "data was lost, and that is said"
    );
    assert_eq!(blk.config()[BlkConfig::WRITEBACK as usize], 1);
    assert!(!blk.0.durability.write_through());
}

#[test]
fn a_disk_that_is_not_there_has_its_size() {
    let null = Storage::Null {
        size: 4 << 30,
        block_size: 4096,
    };
    let disk = Disk::new(null, Settings::default()).unwrap();
    let blk = Blk::new(disk);
    assert_eq!(blk.0.config().capacity, 8 << 20);
    assert_eq!(blk.0.config().blk_size, 4096);
    set_writeback(&blk, 0).unwrap();
    assert!(blk.queue(0).unwrap().ready().is_none());
}

#[test]
fn while_the_cache_is_being_turned_off_it_is_on_and_writes_are_durable() {
    let file = file(1 << 20);
    let blk = blk(&file, Settings::default(), false);
    let shown = || blk.config()[BlkConfig::WRITEBACK as usize];
    for commits in [false, true] {
        let change = blk.write_config(BlkConfig::WRITEBACK, &[0]).unwrap();
        let Change::After(mut preparation) = change else {
            panic!("what was written before is not synced");
        };
        assert_eq!((shown(), blk.0.durability.write_through()), (1, true));
        preparation.prepare().unwrap();
        assert_eq!((shown(), blk.0.durability.write_through()), (1, true));
        match commits {
            true => preparation.commit(),
            false => drop(preparation),
        }
        let off = blk.0.durability.write_through();
        assert_eq!((shown(), off), (u8::from(!commits), commits));
    }
    // Nothing is left to be synced.
    let change = blk.write_config(BlkConfig::WRITEBACK, &[0]).unwrap();
    assert!(matches!(change, Change::Done));
}

#[test]
fn an_attempt_to_turn_the_cache_off_that_was_given_up_ends_no_other() {
    let file = file(1 << 20);
    let blk = blk(&file, Settings::default(), false);
    let attempt = || match blk.write_config(BlkConfig::WRITEBACK, &[0]).unwrap() {
        Change::After(preparation) => preparation,
        Change::Done => panic!("what was written before is not synced"),
    };
    let (given_up, next) = (attempt(), attempt());
    drop(given_up);
    assert!(blk.0.durability.write_through(), "the next is under way");
    drop(next);
    assert!(!blk.0.durability.write_through());
}
