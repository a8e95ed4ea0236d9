//! Checks on the host what the bundled guest wrote on a disk image: `guest-check IMAGE [SEED]` prints
//! `sectors=` and `digest=` as the guest does, or the first sector that is neither a pattern nor zero.

use guest_logic::pattern::{SECTOR, digest, generation_of};
use std::fs::File;
use std::io::{BufReader, ErrorKind, Read};
use std::process::ExitCode;

fn check(path: &str, seed: u64) -> Result<(u64, u64), String> {
    let file = File::open(path).map_err(|error| format!("cannot open {path}: {error}"))?;
    let mut file = BufReader::with_capacity(1 << 20, file);
    let mut bytes = [0; SECTOR];
    let (mut sectors, mut sum) = (0, 0u64);
    for sector in 0.. {
        match file.read_exact(&mut bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(format!("cannot read {path} at sector {sector}: {error}")),
        }
        match generation_of(&bytes, sector, seed) {
            Ok(None) => {}
            Ok(Some(generation)) => {
                sectors += 1;
                sum = sum.wrapping_add(digest(sector, generation));
            }
            Err(wrong) => return Err(format!("{path}, sector {sector}: {wrong:x?}")),
        }
    }
    Ok((sectors, sum))
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (path, seed) = match arguments.as_slice() {
        [path] => (path, Some(1)),
        [path, seed] => (path, seed.parse().ok()),
        _ => return usage(),
    };
    let Some(seed) = seed else { return usage() };
    match check(path, seed) {
        Ok((sectors, digest)) => {
            println!("sectors={sectors} digest={digest:#018x}");
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("guest-check: {message}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: guest-check IMAGE [SEED]");
    ExitCode::from(2)
}
