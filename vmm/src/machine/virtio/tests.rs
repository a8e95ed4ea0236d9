use proptest::prelude::*;

use super::*;

const QUEUES: u16 = 4;
const VECTORS: u16 = 5;
const OFFERED: u64 = F_VERSION_1 | F_EVENT_IDX | 0x240;

fn shape() -> Shape {
    Shape {
        queues: QUEUES,
        queue_size: 256,
        vectors: VECTORS,
        config_len: 60,
        device_features: 0x00ff_ffff,
    }
}

fn device() -> Registers {
    let mut device = Registers::new(shape());
    device.offer(OFFERED | 1 << 30 | 1 << 33 | 1 << 34 | 1 << 40);
    device
}

fn read(device: &Registers, offset: usize, len: usize) -> u64 {
    let mut bytes = [0; 8];
    device.read_common(offset, &mut bytes[..len]);
    u64::from_le_bytes(bytes)
}

fn status(device: &mut Registers, value: u8) -> Vec<Event> {
    device.write_common(20, &[value])
}

fn accept(device: &mut Registers, features: u64) {
    for select in 0..2u32 {
        device.write_common(8, &select.to_le_bytes());
        let half = (features >> (32 * select)) as u32;
        device.write_common(12, &half.to_le_bytes());
    }
}

fn select(device: &mut Registers, queue: u16) {
    device.write_common(22, &queue.to_le_bytes());
}

fn enable_queue(device: &mut Registers, queue: u16) -> Vec<Event> {
    select(device, queue);
    let base = 0x1_0000_0000 + (u64::from(queue) << 16);
    for (at, address) in [(32, base), (40, base + 0x2000), (48, base + 0x4000)] {
        device.write_common(at, &(address as u32).to_le_bytes());
        device.write_common(at + 4, &((address >> 32) as u32).to_le_bytes());
    }
    device.write_common(28, &[1, 0])
}

fn ring(queue: u16, size: u16) -> Ring {
    let base = 0x1_0000_0000 + (u64::from(queue) << 16);
    Ring {
        index: queue,
        size,
        descriptors: base,
        available: base + 0x2000,
        used: base + 0x4000,
    }
}

/// A device whose driver is ready with queue 0.
fn running() -> Registers {
    let mut device = device();
    status(&mut device, 1);
    status(&mut device, 3);
    accept(&mut device, F_VERSION_1);
    status(&mut device, 11);
    enable_queue(&mut device, 0);
    status(&mut device, 15);
    device
}

#[test]
fn a_driver_that_follows_the_specification_gets_its_rings_started() {
    let mut device = device();
    device.write_common(0, &0u32.to_le_bytes());
    assert_eq!(read(&device, 4, 4), OFFERED & 0xffff_ffff, "nothing else");
    device.write_common(0, &1u32.to_le_bytes());
    assert_eq!(read(&device, 4, 4), 1, "VERSION_1 alone");
    device.write_common(0, &2u32.to_le_bytes());
    assert_eq!(read(&device, 4, 4), 0);
    status(&mut device, 1);
    status(&mut device, 3);
    accept(&mut device, OFFERED);
    assert!(status(&mut device, 11).is_empty());
    assert_eq!(read(&device, 20, 1), 11);
    assert_eq!(read(&device, 18, 2), u64::from(QUEUES));
    select(&mut device, 2);
    assert_eq!(read(&device, 24, 2), 256);
    device.write_common(24, &64u16.to_le_bytes());
    assert_eq!(enable_queue(&mut device, 2), []);
    assert_eq!(read(&device, 30, 2), 2, "notify offset");
    let ready = Event::DriverOk {
        features: OFFERED,
        rings: vec![ring(2, 64)],
    };
    assert_eq!(status(&mut device, 15), [ready]);
    assert_eq!(status(&mut device, 15), [], "only once");
    let late = enable_queue(&mut device, 1);
    assert_eq!(late, [Event::RingEnabled(ring(1, 256))]);
    assert_eq!(device.write_common(28, &[1, 0]), [], "it is already");
}

#[test]
fn features_that_were_not_offered_or_lack_version_1_are_not_agreed_on() {
    for features in [0, 0x240, F_VERSION_1 | 1 << 33, F_VERSION_1 | 1 << 34, !0] {
        let mut device = device();
        status(&mut device, 3);
        accept(&mut device, features);
        status(&mut device, 11);
        assert_eq!(device.status(), 3, "{features:#x}");
        assert_eq!(status(&mut device, 15), [], "no DRIVER_OK without");
        assert_eq!(device.status(), 3);
        accept(&mut device, F_VERSION_1);
        status(&mut device, 11);
        assert_eq!(device.status(), 11, "a second attempt may succeed");
        accept(&mut device, 0);
        assert_eq!(device.driver_features(), F_VERSION_1, "final");
    }
}

#[test]
fn features_are_written_by_halves_in_any_order_and_agreed_on_when_it_is_asked() {
    for halves in [[0u32, 1], [1, 0]] {
        let mut device = device();
        for half in halves {
            device.write_common(8, &half.to_le_bytes());
            device.write_common(12, &((OFFERED >> (32 * half)) as u32).to_le_bytes());
        }
        assert_eq!(device.driver_features(), OFFERED, "{halves:?}");
        device.write_common(8, &2u32.to_le_bytes());
        device.write_common(12, &1u32.to_le_bytes());
        assert_eq!(device.driver_features(), OFFERED, "there are two halves");
        status(&mut device, 3);
        assert_eq!(device.status(), 3, "not asked yet");
        status(&mut device, 11);
        assert_eq!(device.status(), 11);
    }
}

#[test]
fn a_reset_reads_as_done_only_when_the_rings_are_back() {
    let mut device = running();
    device.write_common(26, &1u16.to_le_bytes());
    assert_eq!(
        status(&mut device, 0),
        [Event::VectorsCleared, Event::Reset]
    );
    assert_eq!(device.status(), 15, "not yet");
    assert_eq!(read(&device, 26, 2), u64::from(NO_VECTOR));
    assert_eq!(status(&mut device, 0), [], "asked already");
    assert_eq!(status(&mut device, 128), []);
    assert_eq!(enable_queue(&mut device, 1), []);
    device.write_common(16, &1u16.to_le_bytes());
    assert_eq!(read(&device, 16, 2), u64::from(NO_VECTOR));
    assert!(device.write_config(0, &[1]).is_empty());
    device.reset_done();
    assert_eq!(device.status(), 0);
    select(&mut device, 0);
    assert_eq!(read(&device, 28, 2), 0, "disabled");
    assert_eq!(read(&device, 32, 8), 0, "no address");
    device.reset_done();
    assert_eq!(device.offered(), OFFERED, "what is offered stays");
}

/// Every register of the common configuration, for every choice of the three
/// that select; but for the generation, which a reset does not go back in.
fn registers(device: &Registers) -> Vec<(u32, u16, Vec<u8>)> {
    let mut found = Vec::new();
    for half in 0..3u32 {
        for queue in 0..=QUEUES {
            let mut device = device.clone();
            device.write_common(0, &half.to_le_bytes());
            device.write_common(8, &half.to_le_bytes());
            select(&mut device, queue);
            let mut bytes = vec![0; COMMON_LEN];
            device.read_common(0, &mut bytes);
            bytes[21] = 0;
            found.push((half, queue, bytes));
        }
    }
    found
}

/// A device whose driver has written to every register, `last` the status.
fn written_to(last: u8) -> Registers {
    let mut device = device();
    status(&mut device, 3);
    accept(&mut device, OFFERED);
    status(&mut device, 11);
    device.write_common(16, &1u16.to_le_bytes());
    for queue in 0..QUEUES {
        select(&mut device, queue);
        device.write_common(24, &64u16.to_le_bytes());
        device.write_common(26, &(1 + queue).to_le_bytes());
        enable_queue(&mut device, queue);
    }
    status(&mut device, last);
    let (new, written) = (registers(&self::device()), registers(&device));
    let same = |at: &usize| new.iter().zip(&written).all(|(a, b)| a.2[*at] == b.2[*at]);
    // Features, vector, status, size, vector, enabled, three addresses.
    let all = [12, 16, 20, 24, 26, 28, 36, 44, 52];
    assert_eq!(all.iter().find(|at| same(at)), None, "each was written to");
    device.write_common(0, &1u32.to_le_bytes());
    device.write_common(8, &1u32.to_le_bytes());
    device
}

#[test]
fn every_register_reads_after_a_reset_as_it_did_when_new() {
    let new = device();
    // Nothing runs yet: the reset is done at once.
    let mut before = written_to(11);
    status(&mut before, 0);
    // Something runs, is broken, and has changed its configuration.
    let mut after = written_to(15);
    assert!(after.set_config(&[1; 60]));
    assert!(after.needs_reset());
    status(&mut after, 0);
    after.reset_done();
    for mut device in [before, after] {
        let mut selectors = [0; COMMON_LEN];
        device.read_common(0, &mut selectors);
        assert_eq!(selectors[..4], [0; 4], "device_feature_select");
        assert_eq!(selectors[8..12], [0; 4], "driver_feature_select");
        assert_eq!(selectors[22..24], [0; 2], "queue_select");
        assert_eq!(registers(&device), registers(&new));
        assert_eq!(device.driver_features(), 0);
        assert_eq!(device.read_isr(), 0);
        // And the next driver is heard.
        status(&mut device, 3);
        accept(&mut device, F_VERSION_1);
        status(&mut device, 11);
        enable_queue(&mut device, 0);
        let ready = Event::DriverOk {
            features: F_VERSION_1,
            rings: vec![ring(0, 256)],
        };
        assert_eq!(status(&mut device, 15), [ready]);
    }
}

#[test]
fn transport_and_rings_are_offered_also_of_a_device_that_lets_all_through() {
    let every = Shape {
        device_features: !0,
        ..shape()
    };
    assert_eq!(Registers::new(every).offer(!0), !0);
    let none = Shape {
        device_features: 0,
        ..shape()
    };
    assert_eq!(Registers::new(none).offer(!0), TRANSPORT_FEATURES);
}

#[test]
fn no_interrupt_has_a_vector_while_a_reset_is_under_way() {
    let mut device = written_to(15);
    status(&mut device, 0);
    assert_eq!(device.status(), 15, "not yet");
    assert_eq!(read(&device, 16, 2), u64::from(NO_VECTOR));
    for queue in 0..QUEUES {
        select(&mut device, queue);
        assert_eq!(read(&device, 26, 2), u64::from(NO_VECTOR), "{queue}");
    }
}

#[test]
fn a_reset_before_the_driver_was_ready_is_done_at_once() {
    let mut device = device();
    status(&mut device, 11);
    enable_queue(&mut device, 0);
    assert_eq!(status(&mut device, 0), [Event::VectorsCleared]);
    assert_eq!(device.status(), 0);
    assert_eq!(read(&device, 28, 2), 0);
}

#[test]
fn queue_registers_hold_still_once_the_queue_is_enabled() {
    let mut device = running();
    select(&mut device, 0);
    let before = device.clone();
    for (offset, len) in [(24, 2), (28, 2), (32, 4), (36, 4), (40, 8), (52, 4)] {
        device.write_common(offset, &vec![0x40; len]);
        device.write_common(offset, &vec![0; len]);
    }
    for at in (24..56).filter(|at| !(26..28).contains(at)) {
        assert_eq!(read(&device, at, 1), read(&before, at, 1), "{at}");
    }
}

#[test]
fn an_address_is_written_whole_or_by_halves_in_any_order() {
    let whole: u64 = 0x8877_6655_4433_2211;
    let bytes = whole.to_le_bytes();
    let (low, high) = bytes.split_at(4);
    for at in [32, 40, 48] {
        let mut device = device();
        select(&mut device, 1);
        let others = [32, 40, 48].into_iter().filter(|other| *other != at);
        for writes in [
            &[(0, &bytes[..])][..],
            &[(0, low), (4, high)],
            &[(4, high), (0, low)],
        ] {
            // Over another address.
            device.write_common(at, &(!whole).to_le_bytes());
            for (offset, bytes) in writes {
                device.write_common(at + offset, bytes);
            }
            assert_eq!(read(&device, at, 8), whole, "{writes:?}");
        }
        // No other part of it is a register.
        for (offset, length) in [(0, 1), (0, 2), (0, 7), (1, 4), (2, 2), (4, 2), (6, 2)] {
            device.write_common(at + offset, &vec![0; length]);
            assert_eq!(read(&device, at, 8), whole, "{length} at {offset}");
        }
        for other in others {
            assert_eq!(read(&device, other, 8), 0, "{other}");
        }
    }
}

#[test]
fn impossible_sizes_vectors_and_queues_are_refused() {
    let mut device = device();
    select(&mut device, 1);
    for size in [0u16, 3, 257, 512, 0xffff] {
        device.write_common(24, &size.to_le_bytes());
        assert_eq!(read(&device, 24, 2), 256, "{size}");
    }
    for size in [1u16, 128, 256] {
        device.write_common(24, &size.to_le_bytes());
        assert_eq!(read(&device, 24, 2), u64::from(size), "possible");
    }
    for (vector, found) in [(0, 0), (4, 4), (5, NO_VECTOR), (NO_VECTOR, NO_VECTOR)] {
        let events = device.write_common(26, &u16::to_le_bytes(vector));
        let source = Source::Queue(1);
        let vector = found;
        assert_eq!(events, [Event::Vector { source, vector }]);
        assert_eq!(read(&device, 26, 2), u64::from(found));
    }
    for queue in [QUEUES, 0x100, 0xffff] {
        select(&mut device, queue);
        assert_eq!(read(&device, 24, 2), 0, "there is none");
        assert_eq!(read(&device, 26, 2), u64::from(NO_VECTOR));
        assert!((28..56).all(|at| read(&device, at, 1) == 0), "{queue}");
        for offset in 24..56 {
            for len in [1, 2, 4, 8] {
                assert_eq!(device.write_common(offset, &vec![1; len]), []);
            }
        }
        assert_eq!(read(&device, 22, 2), u64::from(queue));
    }
}

#[test]
fn a_changed_configuration_is_a_new_generation_and_an_interrupt() {
    let mut device = device();
    assert!(!device.set_config(&[1; 60]), "nobody listens yet");
    assert_eq!(read(&device, 21, 1), 1);
    let mut device = running();
    assert!(!device.set_config(&[0; 60]), "no change");
    assert!(device.set_config(&[1; 60]));
    assert!(device.set_config(&[2; 7]), "a short one is padded");
    let mut bytes = [0xaa; 4];
    device.read_config(5, &mut bytes);
    assert_eq!(bytes, [2, 2, 0, 0]);
    assert_eq!(read(&device, 21, 1), 2);
    assert_eq!(device.read_isr(), 2);
    assert_eq!(device.read_isr(), 0, "reading clears it");
}

#[test]
fn what_the_driver_writes_to_the_configuration_reads_back_until_the_back_end_has_it() {
    let mut device = running();
    let event = Event::ConfigWrite {
        offset: 32,
        data: vec![1],
    };
    assert_eq!(device.write_config(32, &[1]), [event]);
    let mut byte = [0];
    assert!(!device.set_config(&[0; 60]), "older than the write");
    device.read_config(32, &mut byte);
    assert_eq!(byte, [1]);
    device.config_written();
    assert!(device.set_config(&[0; 60]), "refused: the driver is told");
    device.read_config(32, &mut byte);
    assert_eq!(byte, [0]);
    for (offset, len) in [(60, 1), (59, 2), (usize::MAX, 1), (0, 0)] {
        assert_eq!(device.write_config(offset, &vec![1; len]), []);
    }
}

#[test]
fn a_broken_device_says_so_until_it_is_reset() {
    let mut device = device();
    assert!(!device.needs_reset(), "no driver, nobody to tell");
    assert_eq!(device.status(), 0);
    let mut device = running();
    for _ in 0..2 {
        assert!(device.needs_reset());
        assert_eq!(device.status(), 15 | status::NEEDS_RESET);
    }
    status(&mut device, 15);
    assert_eq!(device.status(), 15 | status::NEEDS_RESET);
    status(&mut device, 0);
    assert!(!device.needs_reset());
    device.reset_done();
    assert_eq!(device.status(), 0);
    status(&mut device, status::NEEDS_RESET);
    assert_eq!(device.status(), 0, "not the driver's to set");
}

/// One access of a guest that has no driver, or of the device's owner.
#[derive(Clone, Debug)]
enum Step {
    Common(usize, Vec<u8>),
    Config(usize, Vec<u8>),
    ResetDone,
    NeedsReset,
    NewConfig(Vec<u8>),
    Written,
    Accept,
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..9);
    let likely = prop_oneof![
        (20..21usize, prop::collection::vec(0..=16u8, 1)),
        (22..23usize, prop::collection::vec(0..=5u8, 2)),
        (28..29usize, Just(vec![1u8, 0])),
    ];
    prop_oneof![
        (0..80usize, bytes()).prop_map(|(at, data)| Step::Common(at, data)),
        likely.prop_map(|(at, data)| Step::Common(at, data)),
        (0..80usize, bytes()).prop_map(|(at, data)| Step::Config(at, data)),
        Just(Step::ResetDone),
        Just(Step::NeedsReset),
        bytes().prop_map(Step::NewConfig),
        Just(Step::Written),
        Just(Step::Accept),
    ]
}

fn check(device: &Registers, events: &[Event]) {
    for event in events {
        match event {
            Event::Vector { vector, .. } => {
                assert!(*vector < VECTORS || *vector == NO_VECTOR);
            }
            Event::DriverOk { features, rings } => {
                assert_eq!(features & !OFFERED, 0);
                assert_ne!(features & F_VERSION_1, 0);
                rings.iter().for_each(check_ring);
            }
            Event::RingEnabled(ring) => check_ring(ring),
            Event::ConfigWrite { offset, data } => {
                assert!(*offset as usize + data.len() <= 60 && !data.is_empty());
            }
            Event::Reset | Event::VectorsCleared => {}
        }
    }
    if device.status() & status::DRIVER_OK != 0 {
        assert_ne!(device.status() & status::FEATURES_OK, 0);
    }
    if device.status() & status::FEATURES_OK != 0 {
        assert_eq!(device.driver_features() & !OFFERED, 0);
    }
    assert_eq!(device.offered(), OFFERED);
}

fn check_ring(ring: &Ring) {
    assert!(ring.index < QUEUES && ring.size.is_power_of_two() && ring.size <= 256);
}

proptest! {
    #[test]
    fn no_sequence_of_accesses_breaks_the_rules(steps in prop::collection::vec(step(), 0..200)) {
        let mut device = device();
        // Between two DRIVER_OK there is a reset, and between two resets a DRIVER_OK.
        let mut live = false;
        for step in steps {
            let events = match &step {
                Step::Common(at, data) => device.write_common(*at, data),
                Step::Config(at, data) => device.write_config(*at, data),
                other => {
                    match other {
                        Step::ResetDone => device.reset_done(),
                        Step::NeedsReset => drop(device.needs_reset()),
                        Step::NewConfig(bytes) => drop(device.set_config(bytes)),
                        Step::Accept => accept(&mut device, F_VERSION_1 | 0x40),
                        _ => device.config_written(),
                    }
                    Vec::new()
                }
            };
            check(&device, &events);
            for event in &events {
                match event {
                    Event::DriverOk { .. } => {
                        prop_assert!(!live);
                        live = true;
                    }
                    Event::Reset => {
                        prop_assert!(live);
                        live = false;
                    }
                    Event::RingEnabled(_) => prop_assert!(live),
                    _ => {}
                }
            }
            let mut bytes = [0; 8];
            for at in [0, 20, 24, 53, 56, 1000] {
                device.read_common(at, &mut bytes);
                device.read_config(at, &mut bytes);
            }
        }
    }
}
