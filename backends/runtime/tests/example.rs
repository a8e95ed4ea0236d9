//! The worked examples of backends/README.md: what is quoted there is what the
//! files say, and the example on this runtime serves. The program under test is
//! this one, started again with [`CHILD`] set.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "tests"
)]

#[path = "../examples/entropy.rs"]
mod entropy;
mod support;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};
use outboard_contract::client::Client;
use outboard_contract::driver::Driver;
use outboard_contract::program::{Program, lent};
use outboard_contract::ring::Buffer;
use outboard_protocol::devices::Kind;
use outboard_protocol::launch::{self, Handover};
use support::*;

const CHILD: &str = "OUTBOARD_TEST_CHILD";

fn main() -> ExitCode {
    if std::env::var_os(CHILD).is_some() {
        return entropy::main();
    }
    let tests: &[(&str, fn())] = &[
        ("what the readme quotes is what the files say", quotes),
        ("the example serves by the launch contract", serves),
    ];
    let trials = tests.iter().map(|(name, test)| {
        Trial::test(*name, move || {
            test();
            Ok(())
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

/// A quotation is a block of Rust; the line that names its file comes before
/// it, in backquotes. A line of `…` leaves something out.
fn quotes() {
    let backends = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = fs::read_to_string(backends.join("README.md")).unwrap();
    let (mut file, mut block, mut blocks) = (None, None::<Vec<&str>>, 0);
    for line in text.lines() {
        match (&mut block, line) {
            (None, "```rust") => block = Some(Vec::new()),
            (None, line) => {
                let named = line.split('`').find(|word| word.ends_with(".rs"));
                file = named.or(file);
            }
            (Some(lines), "```") => {
                let path = backends.join(file.expect("a file is named before its quotation"));
                let source = fs::read_to_string(&path).unwrap();
                let mut rest = source.as_str();
                for part in lines.split(|line| line.trim() == "…") {
                    let part = part.join("\n");
                    let at = rest.find(&part);
                    let at = at.unwrap_or_else(|| panic!("not in {path:?}:\n{part}"));
                    rest = &rest[at + part.len()..];
                }
                (block, blocks) = (None, blocks + 1);
            }
            (Some(lines), line) => lines.push(line),
        }
    }
    assert!(blocks >= 4, "{blocks} quotations");
    // The example on the runtime is there whole, and as short as it is said.
    let example = fs::read_to_string(backends.join("runtime/examples/entropy.rs")).unwrap();
    assert!(text.contains(&example), "the example is not there whole");
    assert!(example.lines().count() <= 100);
}

fn serves() {
    for handover in [Handover::of(&Kind::rng()), Handover::Connected] {
        let (front, back) = handover.sockets().unwrap();
        let version = launch::OLDEST_VERSION.to_string();
        let mut child = lent(back, std::env::current_exe().unwrap(), &["--fd=9"]).unwrap();
        child.env(CHILD, "1").env(launch::VERSION_ENV, version);
        let program = Program::run(&mut child).unwrap();
        let driver = Driver::new(Client::new(front), 0, guest());
        let mut ring = driver.ring(0, LOW, 16);
        let mut answer = |buffer| ring.submit(&[buffer]).unwrap();
        assert_eq!(answer(Buffer::writable(DATA, 64)), 64);
        assert_eq!(answer(Buffer::readable(DATA, 64)), 0);
        assert_eq!(answer(Buffer::writable(LOW + REGION, 64)), 0);
        assert_eq!(answer(Buffer::writable(DATA, 0x8_0000)), 0x1_0000);
        assert_ne!(driver.get(DATA, 64), [0; 64]);
        drop(driver);
        program.ends_with(0, "").unwrap();
    }
}
