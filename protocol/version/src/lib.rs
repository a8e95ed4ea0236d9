//! What Outboard's programs say when they are asked for their version. All of
//! them say the same: the supervisor and the back-ends belong together.

#[cfg(test)]
mod commit;

/// The release, and of a git checkout the commit, `0.1.0 (3f2a9c41d7be 2026-01-31)`;
/// of a source archive the release alone.
///
/// It is the commit that was checked out when the program was built. Whether
/// files had been edited since then cannot be told: to notice that, every
/// program would have to be built again for every edit of any of them.
pub const VERSION: &str = env!("OUTBOARD_VERSION");

/// The day of that commit, `YYYY-MM-DD`; empty for a source archive.
pub const COMMIT_DATE: &str = env!("OUTBOARD_COMMIT_DATE");
