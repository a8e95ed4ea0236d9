//! The circles that are no failure for the time being.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::Outcome;
use crate::circles::Circle;

/// A circle that must be there as it is listed. If it has been opened or has got
/// smaller, that is to be written here, so that it cannot grow again.
pub struct Known {
    /// The folder of the crate's source.
    pub source: &'static str,
    pub files: &'static [&'static str],
}

/// There is none, and none is to come.
pub const KNOWN: &[Known] = &[];

impl Known {
    fn files(&self) -> BTreeSet<PathBuf> {
        let files = self.files.iter();
        files
            .map(|file| Path::new(self.source).join(file))
            .collect()
    }
}

/// Every circle is known, and every known one is there.
pub fn check(circles: &[Circle], known: &[Known]) -> Outcome {
    let mut outcome = Outcome::default();
    for circle in circles {
        if known.iter().any(|known| known.files() == circle.files) {
            outcome.told.push(format!("known {circle}"));
        } else {
            outcome.wrong.push(circle.to_string());
        }
    }
    for known in known {
        if !circles.iter().any(|circle| circle.files == known.files()) {
            outcome.wrong.push(format!(
                "scripts/style/src/known.rs lists a circle of {}, {}, which is not there as it is listed",
                known.source,
                known.files.join(", ")
            ));
        }
    }
    outcome
}
