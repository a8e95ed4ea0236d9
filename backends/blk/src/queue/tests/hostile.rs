//! Whatever a guest writes: memory and image stay what they are outside of
//! what was asked for, and every chain is answered.

use super::*;
use crate::request::tests::buffers;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_chain_is_answered_and_touches_only_its_own(
        readable in buffers(),
        writable in buffers(),
        kind in prop_oneof![4 => 0..14u32, 1 => any::<u32>()],
        sector in prop_oneof![4 => 0..2048u64, 1 => any::<u64>()],
        body in prop::collection::vec(any::<u8>(), 0..48),
        good_header in prop_oneof![3 => Just(true), 1 => Just(false)],
    ) {
        let mut fixture = Fixture::new();
        let content = pattern(1 << 20, 3);
        fixture.file.as_file().write_all_at(&content, 0).unwrap();
        let start = GuestAddress(START);
        let mut readable = readable;
        if good_header {
            let header = fixture.guest.put(&header(kind, sector));
            let body = fixture.guest.put(&body);
            readable.splice(0..0, [header, body]);
        }
        let mut before = vec![0; SIZE as usize];
        fixture.guest.memory.read_slice(&mut before, start).unwrap();
        let chain = Chain { head: 3, readable, writable };

        let mut queue = fixture.real();
        let used = match queue.take(&chain) {
            Outcome::Done(used) => used,
            Outcome::Deferred => {
                let answers = reap(&mut queue, 1);
                prop_assert_eq!(answers[0].0, 3);
                answers[0].1
            }
            Outcome::NotNow => panic!("the queue is empty"),
        };

        let room: u64 = chain.writable.iter().map(|buffer| u64::from(buffer.length)).sum();
        prop_assert!(u64::from(used) <= room, "{} of {}", used, room);
        let mut after = vec![0; SIZE as usize];
        fixture.guest.memory.read_slice(&mut after, start).unwrap();
        for buffer in &chain.writable {
            let from = buffer.address.0.clamp(START, START + SIZE);
            let to = buffer.address.0.saturating_add(buffer.length.into());
            let own = (from - START) as usize..(to.clamp(from, START + SIZE) - START) as usize;
            let (was, is) = (&before[own.clone()], &mut after[own]);
            is.copy_from_slice(was);
        }
        prop_assert!(before == after, "memory of others was written");
        prop_assert_eq!(fixture.file.as_file().metadata().unwrap().len(), 1 << 20);
        let changes = !good_header || [OUT, DISCARD, WRITE_ZEROES].contains(&kind);
        prop_assert!(changes || fixture.content() == content);
    }
}
