use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn request(number: u64) -> InFlight {
    InFlight {
        queue: (number % 2) as u16,
        head: number as u16,
        counter: number,
    }
}

fn found(numbers: &[u64]) -> Told {
    Told::Found(numbers.iter().map(|number| request(*number)).collect())
}

/// What becomes of suspects that hear this of one process, which then dies.
fn life(suspects: &mut Suspects, told: &[Told], doing: Doing) -> (bool, Vec<u64>) {
    for told in told {
        suspects.hear(told.clone());
    }
    suspects.died(doing);
    let order = suspects.order();
    let refuse = order.refuse.iter().map(|request| request.counter);
    (order.one_by_one, refuse.collect())
}

#[test]
fn the_third_death_on_a_request_is_the_last() {
    let mut suspects = Suspects::default();
    let own = Doing::Own;
    assert_eq!(life(&mut suspects, &[], own), (false, vec![]));
    assert_eq!(
        life(&mut suspects, &[found(&[1, 2, 3])], own),
        (true, vec![])
    );
    let replays = |number| Told::Replays(request(number));
    let third = [found(&[1, 2, 3]), replays(1), replays(3)];
    assert_eq!(life(&mut suspects, &third, own), (true, vec![3]));
    // It is refused until it is returned.
    let fourth = [found(&[2, 3])];
    assert_eq!(life(&mut suspects, &fourth, own), (true, vec![3]));
    let fifth = [found(&[2, 3]), Told::Replayed(0), Told::Replayed(1)];
    assert_eq!(life(&mut suspects, &fifth, own), (false, vec![]));
}

#[test]
fn two_that_kill_are_both_found() {
    let mut suspects = Suspects::default();
    let own = Doing::Own;
    let replays = |number| Told::Replays(request(number));
    life(&mut suspects, &[], own);
    life(&mut suspects, &[found(&[2, 4])], own);
    let first = [found(&[2, 4]), replays(2)];
    assert_eq!(life(&mut suspects, &first, own), (true, vec![2]));
    // The first was refused, and returned; its queue has another.
    let second = [found(&[2, 4]), replays(4)];
    assert_eq!(life(&mut suspects, &second, own), (true, vec![2, 4]));
    let last = [found(&[4]), Told::Replayed(0)];
    assert_eq!(life(&mut suspects, &last, own), (false, vec![]));
}

#[test]
fn a_death_that_is_not_its_own_speaks_against_nobody() {
    let mut suspects = Suspects::default();
    let told = [found(&[1]), Told::Replays(request(1))];
    life(&mut suspects, &[], Doing::Own);
    for _ in 0..100 {
        let order = life(&mut suspects, &told, Doing::Outside);
        assert_eq!(order, (false, vec![]));
    }
    life(&mut suspects, &told, Doing::Own);
    for _ in 0..100 {
        let order = life(&mut suspects, &told, Doing::Outside);
        assert_eq!(order, (true, vec![]));
    }
    assert_eq!(life(&mut suspects, &told, Doing::Own), (true, vec![1]));
}

#[test]
fn what_was_returned_is_innocent_and_a_death_of_something_new_begins_a_row() {
    let mut suspects = Suspects::default();
    let (own, replays) = (Doing::Own, |number| Told::Replays(request(number)));
    life(&mut suspects, &[], own);
    life(&mut suspects, &[found(&[1, 2])], own);
    // It dies later, of what it had not found.
    let all = [
        found(&[1, 2]),
        replays(1),
        replays(2),
        Told::Replayed(1),
        Told::Replayed(0),
    ];
    assert_eq!(life(&mut suspects, &all, own), (false, vec![]));
    assert_eq!(life(&mut suspects, &[found(&[5])], own), (true, vec![]));
}

#[test]
fn a_back_end_that_lies_blames_nothing_that_it_has_not_found_or_was_not_asked_for() {
    let mut suspects = Suspects::default();
    let own = Doing::Own;
    life(&mut suspects, &[], own);
    // It was not told to replay one by one.
    let told = [found(&[1]), Told::Replays(request(1))];
    assert_eq!(life(&mut suspects, &told, own), (true, vec![]));
    let told = [found(&[1]), Told::Replays(request(9))];
    assert_eq!(life(&mut suspects, &told, own), (true, vec![]));
    // Nor is it heard of what it was not told to refuse.
    let refused = Told::Refused(request(1), "a flush".into());
    assert_eq!(suspects.hear(refused), None);
    let many: Vec<_> = (0..100_000).collect();
    suspects.hear(found(&many));
    assert_eq!(suspects.found.len(), MOST);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]

    /// Some of the requests kill whoever executes them; besides, somebody kills at any
    /// moment. None of the others is ever refused, and in the end all are returned.
    #[test]
    fn only_those_that_kill_are_refused_and_all_come_back(
        requests in 1u64..12,
        killers in any::<u16>(),
        storm in vec(any::<u8>(), 0..60),
    ) {
        let kills = |number: u64| killers & 1 << number != 0;
        let mut storm = storm.into_iter();
        let mut left: Vec<u64> = (0..requests).collect();
        let mut suspects = Suspects::default();
        suspects.died(Doing::Own);
        let mut own = 0;
        while !left.is_empty() {
            let order = suspects.order();
            for refused in &order.refuse {
                prop_assert!(kills(refused.counter), "{} is innocent", refused.counter);
            }
            suspects.hear(found(&left));
            // After so many requests somebody kills it.
            let mut until = storm.next().map_or(u64::MAX, |dice| u64::from(dice % 8));
            let mut doing = None;
            for number in left.clone() {
                if until == 0 {
                    doing = Some(Doing::Outside);
                    break;
                }
                let is_refused = order.refuse.contains(&request(number));
                if !is_refused {
                    until -= 1;
                    if order.one_by_one {
                        suspects.hear(Told::Replays(request(number)));
                    }
                    if kills(number) {
                        doing = Some(Doing::Own);
                        break;
                    }
                }
                left.retain(|other| *other != number);
            }
            match doing {
                Some(doing) => {
                    own += usize::from(doing == Doing::Own);
                    suspects.died(doing);
                }
                None => {
                    suspects.hear(Told::Replayed(0));
                    suspects.hear(Told::Replayed(1));
                }
            }
            prop_assert!(own <= 14, "it goes on dying");
        }
        suspects.died(Doing::Own);
        prop_assert!(suspects.order().is_plain());
    }
}
