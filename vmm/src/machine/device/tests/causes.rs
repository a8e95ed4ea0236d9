//! Why a session is over, and that every attach is answered with its number.

use super::*;

impl Bench {
    /// As [`Bench::attach`], with a number of its own.
    pub(super) fn attach_as(&self, number: SessionNumber, fake: Scripted) -> Running {
        let (stream, running) = fake.start();
        self.device.attach(newcomer(number, Session::new(stream)));
        running
    }

    pub(super) fn lost_session(&self) -> (SessionNumber, Cause, String) {
        match self.event() {
            FromMachine::Lost {
                device,
                session,
                cause,
                text,
            } => {
                assert_eq!(device, "disk0");
                (session, cause, text)
            }
            other => panic!("{other:?}"),
        }
    }

    fn lost_by(&self, expected: Cause) -> String {
        let (session, cause, text) = self.lost_session();
        assert_eq!((session, cause), (1, expected), "{text}");
        text
    }
}

fn faulty(request: FrontendReq, fault: Fault) -> Scripted {
    Scripted::disk().on(request, fault)
}

/// Long enough for an answer, and short enough for a test.
const SHORT: Limits = Limits {
    message: Duration::from_secs(2),
    answer: Duration::from_secs(2),
};

/// What a fault costs while the back-end is attached, and while its rings are
/// started.
fn cause_of_fault(fault: Fault, expected: Cause) {
    for request in [
        FrontendReq::GET_FEATURES,
        FrontendReq::SET_OWNER,
        FrontendReq::SET_FEATURES,
        FrontendReq::GET_INFLIGHT_FD,
        // The last of those that go out together.
        FrontendReq::SET_VRING_KICK,
    ] {
        let Some(bench) = Bench::new() else { return };
        let _fake = bench.attach_within(faulty(request, fault.clone()), SHORT, Whose::Own);
        if matches!(request, FrontendReq::GET_FEATURES | FrontendReq::SET_OWNER) {
            bench.lost_by(expected);
            continue;
        }
        assert!(matches!(bench.event(), FromMachine::Attached { .. }));
        bench.drive();
        bench.lost_by(expected);
    }
}

#[test]
fn one_that_closes_its_connection_is_gone() {
    cause_of_fault(Fault::Close, Cause::Gone);
}

#[test]
fn one_that_closes_its_connection_unasked_is_gone() {
    let Some(bench) = Bench::new() else { return };
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let theirs = Connection::new(theirs);
    bench.device.attach(newcomer(1, Session::new(ours)));
    theirs.recv(Deadline::after(PATIENCE)).unwrap();
    drop(theirs);
    bench.lost_by(Cause::Gone);
    let fake = bench.attached(Scripted::disk());
    bench.drive();
    fake.wait_for(FrontendReq::SET_VRING_ENABLE);
    fake.hang_up();
    // Asked or unasked.
    bench.lost_by(Cause::Gone);
}

#[test]
fn one_that_does_not_answer_or_does_not_finish_is_silent() {
    cause_of_fault(Fault::Silence, Cause::Silent);
    cause_of_fault(Fault::Half, Cause::Silent);
    let Some(bench) = Bench::new() else { return };
    let foreign = Whose::Foreign { writeback: true };
    let _fake = bench.attached_within(Scripted::disk(), SHORT, foreign);
    bench.drive();
    bench.uses(u16::MAX);
    bench.write(BAR + 20, 0, 1);
    bench.lost_by(Cause::Silent);
}

/// Half a request of its own, on its channel.
#[test]
fn one_that_does_not_end_what_it_has_begun_is_silent() {
    let Some(bench) = Bench::new() else { return };
    let fake = bench.attached_within(Scripted::disk(), SHORT, Whose::Own);
    let mut theirs = File::from(fake.channel.recv_timeout(PATIENCE).unwrap());
    theirs.write_all(&[2, 0, 0, 0, 1]).unwrap();
    bench.lost_by(Cause::Silent);
}

#[test]
fn one_that_answers_wrongly_or_refuses_broke_the_protocol() {
    cause_of_fault(Fault::Other, Cause::BrokeProtocol);
    cause_of_fault(Fault::Long, Cause::BrokeProtocol);
    let Some(bench) = Bench::new() else { return };
    let _fake = bench.attached(faulty(FrontendReq::SET_VRING_ADDR, Fault::Value));
    bench.drive();
    assert!(bench.lost_by(Cause::BrokeProtocol).contains("refused"));
}

#[test]
fn one_that_cannot_serve_the_device_does_not_fit() {
    for (fake, words) in [
        (Scripted::disk().queues(1), "use queues=1"),
        (Scripted::disk().features(1 << 30), "VIRTIO_F_VERSION_1"),
        (Scripted::disk().with(1 << 22), "another kind of device"),
        (
            Scripted::disk().without(Protocol::CONFIG),
            "does not serve the configuration",
        ),
        (Scripted::disk().config(vec![0; 36]), "another length"),
    ] {
        let Some(bench) = Bench::new() else { return };
        let _fake = bench.attach(fake);
        let text = bench.lost_by(Cause::DoesNotFit);
        assert!(text.contains(words), "{text}");
    }
}

#[test]
fn one_with_other_pairs_than_were_asked_for_does_not_fit() {
    let Some(bench) = Bench::of(spec(Kind::net(), 9, false)) else {
        return;
    };
    let _fake = bench.attach(
        Scripted::disk()
            .with(1 << 5 | 1 << 17 | 1 << 22)
            .queues(5)
            .config([&[0; 8][..], &[2, 0, 0, 0]].concat()),
    );
    bench.lost_by(Cause::DoesNotFit);
}

#[test]
fn one_with_too_few_slots_for_memory_does_not_fit() {
    let Some(bench) = Bench::new() else { return };
    let none = faulty(FrontendReq::GET_MAX_MEM_SLOTS, Fault::Value);
    let _fake = bench.attached(none);
    bench.drive();
    let text = bench.lost_by(Cause::DoesNotFit);
    assert!(text.contains("0 memory slots"), "{text}");
}

#[test]
fn a_second_one_is_refused_and_the_first_serves_on() {
    let Some(bench) = Bench::new() else { return };
    let first = bench.attached(Scripted::disk());
    for driven in [false, true] {
        if driven {
            bench.drive();
            first.wait_for(FrontendReq::SET_VRING_ENABLE);
        }
        let second = bench.attach_as(2, Scripted::disk());
        let (session, cause, text) = bench.lost_session();
        assert_eq!((session, cause), (2, Cause::DoesNotFit));
        assert!(text.contains("has a back-end already"), "{text}");
        // Nothing was said to it.
        second.join();
    }
    assert_eq!(bench.status(), 15);
    bench.reset();
    first.wait_for(FrontendReq::RESET_DEVICE);
    bench.drive();
    first.wait_for(FrontendReq::SET_VRING_ENABLE);
    // What is said of the first one still has its number.
    first.hang_up();
    bench.lost_by(Cause::Gone);
}

#[test]
fn one_that_comes_when_its_predecessor_has_just_gone_finds_the_place_free() {
    let Some(bench) = Bench::new() else { return };
    for number in (1..60).step_by(2) {
        let first = bench.attach_as(number, Scripted::disk());
        let attached = |session| FromMachine::Attached {
            device: "disk0".into(),
            session,
        };
        assert_eq!(bench.event(), attached(number));
        first.hang_up();
        let second = bench.attach_as(number + 1, Scripted::disk());
        let mut events = Vec::new();
        eventually(|| {
            events.extend(bench.told());
            events.len() == 2
        });
        assert_eq!(events[1], attached(number + 1));
        let gone = |event: &FromMachine| {
            let FromMachine::Lost { session, cause, .. } = event else {
                return false;
            };
            (*session, *cause) == (number, Cause::Gone)
        };
        assert!(gone(&events[0]), "{events:?}");
        second.hang_up();
        bench.lost_session();
    }
}

/// It did fit when it was attached, and the driver was told so.
#[test]
fn one_that_serves_and_changes_its_configuration_s_length_broke_the_protocol() {
    let Some(bench) = Bench::new() else { return };
    let _fake = bench.attached(Scripted::disk().on_after(FrontendReq::GET_CONFIG, 1, Fault::Long));
    bench.write(CONFIG, 7, 8);
    bench.lost_by(Cause::BrokeProtocol);
}

#[test]
fn a_lost_session_leaves_no_doorbell() {
    let Some(bench) = Bench::new() else { return };
    let fake = bench.attached(Scripted::disk());
    bench.drive();
    fake.wait_for(FrontendReq::SET_VRING_ENABLE);
    let here = layout::PCI_MEMORY.start + NOTIFY;
    assert!(bench.has_doorbell(here));
    fake.hang_up();
    bench.lost_by(Cause::Gone);
    assert!(!bench.has_doorbell(here));
}

/// Other than at a reset, nobody else may have the memory before.
#[test]
fn a_card_that_keeps_its_buffers_when_bus_mastering_goes_off_is_lost() {
    let spec = spec(Kind::net(), 3, true);
    let Some(bench) = Bench::of(spec) else { return };
    let fake = Scripted::disk()
        .features(1 << 32 | 1 << 30 | 1 << 5)
        .queues(3);
    let fake = bench.attached_within(fake, SHORT, Whose::default());
    bench.drive();
    fake.wait_for(FrontendReq::SET_VRING_ENABLE);
    bench.uses(u16::MAX);
    let bench = Arc::new(bench);
    let vcpu = std::thread::spawn({
        let bench = Arc::clone(&bench);
        move || master(&bench, false)
    });
    bench.lost_by(Cause::Silent);
    assert!(!vcpu.is_finished());
    bench.device.is_vacant(1);
    eventually(|| vcpu.is_finished());
}
