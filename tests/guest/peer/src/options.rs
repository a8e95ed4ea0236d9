//! The command line: `--key value`.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// How a command ends: with the words of its line, of a success or of a failure.
pub type Outcome = Result<String, String>;

/// What the command line says.
pub struct Options {
    pairs: Vec<(String, String)>,
    began: Instant,
}

impl Options {
    /// Takes the arguments in pairs.
    pub fn parse(arguments: &[String]) -> Result<Options, String> {
        let mut pairs = Vec::new();
        for pair in arguments.chunks(2) {
            match pair {
                [key, value] if key.starts_with("--") => {
                    pairs.push((key[2..].to_owned(), value.clone()));
                }
                other => return Err(format!("reason=bad-argument argument={}", other[0])),
            }
        }
        Ok(Options {
            pairs,
            began: Instant::now(),
        })
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        let mut such = self.pairs.iter().rev().filter(|(name, _)| name == key);
        such.next().map(|(_, value)| value.as_str())
    }

    /// A number.
    pub fn number(&self, key: &str, otherwise: u64) -> Result<u64, String> {
        match self.get(key) {
            None => Ok(otherwise),
            Some(value) => value
                .parse()
                .map_err(|_| format!("reason=bad-value key={key} value={value}")),
        }
    }

    /// A value that must be there.
    pub fn needed(&self, key: &str) -> Result<&str, String> {
        self.get(key)
            .ok_or_else(|| format!("reason=missing key={key}"))
    }

    /// An address.
    pub fn address(&self, key: &str) -> Result<Ipv4Addr, String> {
        let value = self.needed(key)?;
        value
            .parse()
            .map_err(|_| format!("reason=bad-value key={key} value={value}"))
    }

    /// The address to bind to.
    pub fn bind(&self) -> Result<Ipv4Addr, String> {
        match self.get("bind") {
            None => Ok(Ipv4Addr::UNSPECIFIED),
            Some(_) => self.address("bind"),
        }
    }

    /// When to give up.
    pub fn deadline(&self) -> Result<Instant, String> {
        Ok(self.began + Duration::from_secs(self.number("seconds", 60)?))
    }
}

/// Events in a second.
pub fn rate(count: u64, elapsed: Duration) -> u64 {
    (u128::from(count) * 1_000_000_000 / elapsed.as_nanos().max(1)) as u64
}
