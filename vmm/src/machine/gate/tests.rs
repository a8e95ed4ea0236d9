use std::sync::atomic::AtomicBool;
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use outboard_protocol::Deadline;
use outboard_protocol::launch::Ending;

use super::*;

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

fn gate(vcpus: u8) -> Arc<Gate> {
    let end = Arc::new(End::new().unwrap());
    Arc::new(Gate::new(vcpus, &end).unwrap())
}

/// Waits as the main loop does, and takes what it waited for.
fn wait_for_all(gate: &Gate) {
    soon().wait_for(gate.as_fd(), PollFlags::POLLIN).unwrap();
    assert!(gate.all_are_away());
}

/// A vCPU that passes the gate once, and tells whether it had to wait.
fn passes(gate: &Arc<Gate>) -> JoinHandle<bool> {
    let gate = Arc::clone(gate);
    thread::spawn(move || gate.pass())
}

#[test]
fn an_open_gate_holds_nobody_up_and_a_closed_one_everybody_until_it_is_open() {
    let gate = gate(2);
    assert!(!gate.pass());
    gate.close();
    assert!(gate.is_awaited() && !gate.all_are_away());
    let first = passes(&gate);
    let second = passes(&gate);
    wait_for_all(&gate);
    assert!(!gate.is_awaited() && !gate.all_are_away(), "told once");
    assert!(!first.is_finished() && !second.is_finished());
    gate.open();
    assert!(first.join().unwrap() && second.join().unwrap());
    assert!(!gate.pass());
}

#[test]
fn a_second_close_is_answered_again_and_an_open_calls_the_first_off() {
    let gate = gate(1);
    gate.close();
    let vcpu = passes(&gate);
    wait_for_all(&gate);
    gate.close();
    wait_for_all(&gate);
    // The answer that nobody has taken yet is none any more.
    gate.close();
    gate.open();
    assert!(!gate.all_are_away() && !gate.is_awaited());
    assert!(vcpu.join().unwrap());
    // Nobody arrives at an open gate, and it may be opened again.
    gate.open();
    gate.aside(|| assert!(!gate.all_are_away()));
    assert!(!gate.pass());
}

#[test]
fn the_end_of_the_run_lets_go_who_waits() {
    let gate = gate(1);
    gate.close();
    let vcpu = passes(&gate);
    wait_for_all(&gate);
    gate.end().set(Ending::Stopped);
    assert!(vcpu.join().unwrap());
    gate.pass();
}

#[test]
fn who_waits_aside_is_waited_for_by_nobody_and_does_not_pass() {
    let gate = gate(1);
    let ((tell, told), (here, is_here)) = (channel(), channel());
    let vcpu = {
        let gate = Arc::clone(&gate);
        thread::spawn(move || {
            gate.aside(|| {
                here.send(()).unwrap();
                told.recv().unwrap();
            });
            here.send(()).unwrap();
            gate.pass()
        })
    };
    is_here.recv().unwrap();
    gate.close();
    wait_for_all(&gate);
    // It comes to the gate, which is told to nobody who has not asked.
    tell.send(()).unwrap();
    is_here.recv().unwrap();
    assert!(!gate.all_are_away());
    gate.close();
    wait_for_all(&gate);
    assert!(!vcpu.is_finished());
    gate.open();
    assert!(vcpu.join().unwrap());
}

/// vCPUs that come and go as they like never run once all were away, and as long as
/// the gate is not opened.
#[test]
fn nobody_runs_between_the_word_that_all_are_away_and_the_open() {
    const VCPUS: u8 = 3;
    const PAUSES: u32 = 300;
    let gate = gate(VCPUS);
    let paused = Arc::new(AtomicBool::new(false));
    let runs = Arc::new(AtomicBool::new(false));
    let vcpus = (0..VCPUS).map(|vcpu| {
        let (gate, paused, runs) = (Arc::clone(&gate), Arc::clone(&paused), Arc::clone(&runs));
        thread::spawn(move || {
            let mut steps = u32::from(vcpu);
            while gate.end().get().is_none() {
                if gate.pass() {
                    continue;
                }
                // What a guest does.
                runs.store(true, Ordering::SeqCst);
                assert!(!paused.load(Ordering::SeqCst), "it runs in a pause");
                steps = steps.wrapping_add(1);
                match steps % 7 {
                    0 => gate.aside(thread::yield_now),
                    3 => thread::yield_now(),
                    _ => {}
                }
            }
        })
    });
    let vcpus: Vec<_> = vcpus.collect();
    for round in 0..PAUSES {
        gate.close();
        if round % 5 == 0 {
            // A pause that is called off is followed by a true one.
            gate.open();
            gate.close();
        }
        wait_for_all(&gate);
        paused.store(true, Ordering::SeqCst);
        runs.store(false, Ordering::SeqCst);
        thread::yield_now();
        assert!(!runs.load(Ordering::SeqCst), "it runs in a pause");
        paused.store(false, Ordering::SeqCst);
        gate.open();
        while !runs.load(Ordering::SeqCst) {
            assert!(!soon().passed());
            thread::yield_now();
        }
    }
    gate.end().set(Ending::Stopped);
    for vcpu in vcpus {
        vcpu.join().unwrap();
    }
}
