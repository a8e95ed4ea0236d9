//! Which Linux this is, where what it can do can only be tried on a tap that another
//! process serves.

use nix::sys::utsname::uname;

/// Whether it is of this version, major and minor, or later. One that does not say is not.
pub fn is_at_least(version: (u32, u32)) -> bool {
    let told = uname().ok();
    let release = told.as_ref().and_then(|told| told.release().to_str());
    release
        .and_then(parse)
        .is_some_and(|found| found >= version)
}

/// The first two numbers of a release, such as `6.8.0-45-generic`.
fn parse(release: &str) -> Option<(u32, u32)> {
    let (major, rest) = release.split_once('.')?;
    let digits = rest.find(|letter: char| !letter.is_ascii_digit());
    let minor = rest.get(..digits.unwrap_or(rest.len()))?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_known_by_its_first_two_numbers() {
        for (release, version) in [
            ("6.8.0-45-generic", Some((6, 8))),
            ("5.14.0-427.el9.x86_64", Some((5, 14))),
            ("6.2", Some((6, 2))),
            ("6.10-rc1", Some((6, 10))),
            ("7", None),
            ("6.x", None),
            ("", None),
        ] {
            assert_eq!(parse(release), version, "{release}");
        }
        assert!(is_at_least((2, 6)) && !is_at_least((u32::MAX, 0)));
    }
}
