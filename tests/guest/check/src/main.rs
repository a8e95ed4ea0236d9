//! Checks on the host what the bundled guest wrote on a disk image: `guest-check IMAGE [SEED]` prints
//! `sectors=` and `digest=` as the guest does, or the first sector that is neither a pattern nor zero.
//! `guest-check storm IMAGE [SEED [BLOCK]]` compares what `scenario=storm` wrote with the table that it
//! left behind it, and prints how many blocks of which kind there are.

use guest_logic::pattern::{SECTOR, digest, generation_of};
use guest_logic::record::{self, Found, Layout};
use std::fs::File;
use std::io::{BufReader, ErrorKind, Read};
use std::os::unix::fs::FileExt;
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

fn check_storm(path: &str, seed: u64, block: u64) -> Result<Found, String> {
    let file = File::open(path).map_err(|error| format!("cannot open {path}: {error}"))?;
    let length = file
        .metadata()
        .map_err(|error| format!("{path}: {error}"))?
        .len();
    let layout = Layout::new(length / SECTOR as u64, block / SECTOR as u64)
        .ok_or_else(|| format!("{path} is too small"))?;
    record::check(&layout, seed, |sector, bytes| {
        file.read_exact_at(bytes, sector * SECTOR as u64)
            .map_err(|error| format!("cannot read {path} at sector {sector}: {error}"))
    })
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<u64>().ok();
    let said = match words.as_slice() {
        ["storm", path, rest @ ..] if rest.len() < 3 => {
            let seed = rest.first().map_or(Some(1), |text| number(text));
            let block = rest.get(1).map_or(Some(4096), |text| number(text));
            let (Some(seed), Some(block)) = (seed, block) else {
                return usage();
            };
            check_storm(path, seed, block).and_then(|found| match found.is_right() {
                true => Ok(format!("{found:?}")),
                false => Err(format!("{path}: {found:?}")),
            })
        }
        [path, rest @ ..] if rest.len() < 2 => {
            let Some(seed) = rest.first().map_or(Some(1), |text| number(text)) else {
                return usage();
            };
            check(path, seed)
                .map(|(sectors, digest)| format!("sectors={sectors} digest={digest:#018x}"))
        }
        _ => return usage(),
    };
    match said {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("guest-check: {message}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: guest-check IMAGE [SEED]\n       guest-check storm IMAGE [SEED [BLOCK]]");
    ExitCode::from(2)
}
