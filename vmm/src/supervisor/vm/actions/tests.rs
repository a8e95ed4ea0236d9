//! A turn of the loop, with shell scripts for the machine process and a back-end.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use outboard_protocol::Deadline;
use outboard_protocol::devices::Kind;
use outboard_protocol::launch::{self, FromMachine};

use super::*;
use crate::supervisor::host::image::Images;
use crate::supervisor::host::lend::{Lent, Opened};
use crate::supervisor::host::output::Output;
use crate::supervisor::host::program::Program;
use crate::supervisor::plan::VmPlan;
use crate::supervisor::say::Logging;
use crate::supervisor::text::settings::Settings;

/// A script in this folder, written by another process: a child that another test
/// starts meanwhile would hold what this one has open for writing (ETXTBSY).
fn script(folder: &Path, name: &str, text: &str) -> Program {
    let path = folder.join(name);
    let mut shell = std::process::Command::new("/bin/sh");
    let text = format!("#!/bin/sh\n{text}\n");
    shell.args(["-c", "printf %s \"$1\" >\"$0\"; chmod 700 \"$0\""]);
    assert!(shell.arg(&path).arg(text).status().unwrap().success());
    Program::open(&path).unwrap()
}

fn resources(program: Program, back_end: Program) -> Resources {
    let kernel = Some("k".into());
    let settings = Settings {
        kernel,
        ..Settings::default()
    };
    let null = || File::open("/dev/null").unwrap();
    Resources {
        logging: Logging::default(),
        machine: VmPlan::new(settings).unwrap().machine,
        program,
        kvm: null(),
        kernel: null(),
        initrd: None,
        devices: vec![Opened::served_by(
            launch::Device {
                id: "disk0".into(),
                kind: Kind::blk(),
                queues: 1,
                fewer: false,
                queue_size: 256,
                hang_timeout: None,
            },
            back_end,
            Vec::new(),
            Lent::Nothing,
        )],
        images: Images::default(),
    }
}

/// Both have spoken by the time that anybody listens, and then both have ended.
#[test]
fn of_one_turn_a_back_end_s_words_come_before_the_machine_s_and_those_before_a_death() {
    let folder = tempfile::tempdir().unwrap();
    let ready = folder.path().join("ready");
    mkfifo(&ready, Mode::S_IRWXU).unwrap();
    // The machine says that it is attached after the back-end was ready.
    let said = r#"{"message":"attached","device":"disk0","session":1}"#;
    let machine = format!("read x <{ready:?}; printf '{said}' >&3");
    let said = r#"{"message":"ready","version":2,"sandbox":{}}"#;
    let back_end = format!("printf '{said}' >&$OUTBOARD_LINE; echo x >{ready:?}");
    let mut resources = resources(
        script(folder.path(), "machine", &machine),
        script(folder.path(), "back-end", &back_end),
    );
    let (signals, parent) = (Signals::block().unwrap(), Parent::of_all());
    let mut console = Console::new(Output::File(File::open("/dev/null").unwrap()));
    let mut hands = Hands::new(&mut resources, &mut console, &signals, &parent).unwrap();
    assert_eq!(hands.perform(Action::StartMachine), None);
    assert_eq!(
        hands.perform(Action::Attach(0, 1, Some(Kept::Nothing))),
        None
    );
    let both_dead = |hands: &Hands<'_>| hands.poll(None).ended.len() == 2;
    let limit = Deadline::after(Duration::from_secs(60));
    while !both_dead(&hands) {
        assert!(!limit.passed(), "they do not end");
    }
    let events = hands.wait(None);
    let device = |event| Event::Device(0, event);
    let session = 1;
    let attached = FromMachine::Attached {
        device: "disk0".into(),
        session,
    };
    assert_eq!(
        events[..4],
        [
            device(device::Event::Ready(session)),
            device(device::Event::HungUp(session)),
            Event::Said(attached),
            Event::Machine(machine::Event::HungUp),
        ]
    );
    let is_death = |event: &Event| {
        matches!(
            event,
            Event::Machine(machine::Event::Died(_)) | Event::Device(0, device::Event::Died(_))
        )
    };
    assert!(events[4..6].iter().all(is_death), "{events:?}");
    assert_eq!(events[6..], [Event::Tick]);
}
