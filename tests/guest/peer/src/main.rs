//! The host's side of the bundled guest's network scenarios: see tests/guest/README.md. Ends with one
//! line, `PEER <command> result=pass|fail key=value ...`.

mod batch;
mod blast;
mod echo;
mod frames;
mod gso;
mod lengths;
mod options;
mod ping;
mod raw;
mod sink;
mod udp;

use options::Options;
use std::process::ExitCode;

const USAGE: &str = "usage: guest-peer COMMAND [--KEY VALUE]...
  echo                                         answers net-ping
  sink    [--streams 1] [--tap NAME]           takes a net-blast (--tap: also one with gso=)
  blast   --to IP [--size 1472] [--requests N] [--streams 1] [--window N] [--rate PPS]
          [--millis N] [--tap NAME --gso SIZE] for net-sink
  lengths --tap NAME                           answers net-lengths
  frames  --tap NAME --to MAC,… [--first 0] [--gso SIZE]
                                               for net-heard: a frame to each address, or one to be cut
  gso     --tap NAME                           answers net-gso
  ping    --to IP [--requests 10] [--size 56] [--udp 1]
  stop    --to IP                              ends net-echo or net-sink
All: [--seconds 60] until when, at the latest; [--bind IP] for UDP.
lengths, gso: [--idle 3] seconds without a frame, after the first one, until the end; [--stdin 1] or until
standard input ends.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((command, rest)) = arguments.split_first() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let run = match command.as_str() {
        "echo" => echo::run,
        "sink" => sink::run,
        "blast" => blast::run,
        "frames" => frames::run,
        "lengths" => lengths::run,
        "gso" => gso::run,
        "ping" => ping::run,
        "stop" => udp::stop,
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match Options::parse(rest).and_then(|options| run(&options)) {
        Ok(words) => {
            println!("PEER {command} result=pass {words}");
            ExitCode::SUCCESS
        }
        Err(words) => {
            println!("PEER {command} result=fail {words}");
            ExitCode::FAILURE
        }
    }
}
