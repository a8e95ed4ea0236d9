//! How much memory the host and its control group have for a guest.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::supervisor::text::units::Size;

/// Size of the huge pages behind guest memory, in bytes, whatever the host's
/// default is.
const HUGE_PAGE: u64 = 2 << 20;
const FREE_HUGE_PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
const HUGE_PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

/// Checks that `wanted` bytes can be had, before a page is touched. What
/// cannot be found out is not held against anybody.
///
/// # Errors
/// A message that says what there is and what to do.
pub(crate) fn check(wanted: u64, hugepages: bool) -> Result<()> {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let asked = Size(wanted);
    if hugepages {
        let free = fs::read_to_string(FREE_HUGE_PAGES)
            .ok()
            .and_then(|free| free.trim().parse::<u64>().ok());
        if let Some(free) = free
            && free.saturating_mul(HUGE_PAGE) < wanted
        {
            bail!(
                "--memory {asked} with --hugepages: the host has {} in {free} free huge pages of \
                 2 MiB; as root, `echo {} >{HUGE_PAGES}` makes more, or leave out --hugepages",
                Size(free.saturating_mul(HUGE_PAGE)),
                wanted.div_ceil(HUGE_PAGE),
            );
        }
        return Ok(());
    }
    if let Some(free) = available(&meminfo)
        && free < wanted
    {
        bail!(
            "--memory {asked} is more than the host has available ({}); give less",
            Size(free)
        );
    }
    if let Some((free, group)) = control_group()
        && free < wanted
    {
        bail!(
            "--memory {asked} is more than the control group {} allows ({} left); \
             give less, or raise its limit",
            group.display(),
            Size(free)
        );
    }
    Ok(())
}

/// What can be had without swapping others out, and the swap.
fn available(meminfo: &str) -> Option<u64> {
    let memory = field(meminfo, "MemAvailable:")?;
    Some(memory.saturating_add(field(meminfo, "SwapFree:").unwrap_or(0)))
}

/// A field of /proc/meminfo or memory.stat, as it is.
fn count(text: &str, name: &str) -> Option<u64> {
    let line = text
        .lines()
        .find(|line| line.split_whitespace().next() == Some(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// A field in kB, in bytes.
fn field(text: &str, name: &str) -> Option<u64> {
    count(text, name)?.checked_mul(1024)
}

/// The least that any of our control groups leaves, and which that is.
fn control_group() -> Option<(u64, PathBuf)> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mut least: Option<(u64, PathBuf)> = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (root, names) = match (parts.next()?, parts.next()?) {
            ("", path) => ((Path::new("/sys/fs/cgroup"), path), UNIFIED),
            ("memory", path) => ((Path::new("/sys/fs/cgroup/memory"), path), LEGACY),
            _ => continue,
        };
        // A limit of any group above counts as well. In a container some of
        // the path may not be visible; then what is visible counts.
        let own = Path::new(root.1.trim_start_matches('/'));
        for part in own.ancestors() {
            let group = root.0.join(part);
            if let Some(left) = left(&group, names)
                && least.as_ref().is_none_or(|(known, _)| left < *known)
            {
                least = Some((left, group));
            }
        }
    }
    least
}

/// The files of a control group that tell its limit, its use, and the part of
/// that use that is cache (fields of memory.stat).
type Names = [&'static str; 4];
const UNIFIED: Names = [
    "memory.max",
    "memory.current",
    "inactive_file",
    "active_file",
];
const LEGACY: Names = [
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "total_inactive_file",
    "total_active_file",
];

fn left(group: &Path, [limit, used, inactive, active]: Names) -> Option<u64> {
    let number = |name: &str| -> Option<u64> {
        fs::read_to_string(group.join(name))
            .ok()?
            .trim()
            .parse()
            .ok()
    };
    let limit = number(limit)?;
    let used = number(used)?;
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let cache = [inactive, active].map(|name| count(&stat, name).unwrap_or(0));
    let cache = cache
        .iter()
        .fold(0, |sum: u64, part| sum.saturating_add(*part));
    Some(limit.saturating_sub(used.saturating_sub(cache)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_available_counts_and_swap_does_too() {
        let meminfo = "MemTotal: 9 kB\nMemAvailable:   2048 kB\nSwapFree: 1024 kB\n";
        assert_eq!(available(meminfo), Some(3 << 20));
        assert_eq!(available("MemAvailable: much"), None);
    }

    #[test]
    fn a_group_has_its_limit_less_its_use_but_for_cache() {
        let group = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(group.path().join(name), text).unwrap();
        write("memory.current", "700\n");
        write(
            "memory.stat",
            "anon 400\ninactive_file 200\nactive_file 100\n",
        );
        write("memory.max", "max\n");
        assert_eq!(left(group.path(), UNIFIED), None);
        write("memory.max", "1000\n");
        assert_eq!(left(group.path(), UNIFIED), Some(600));
    }

    #[test]
    fn more_than_any_host_has_is_refused_and_little_is_not() {
        let error = check(1 << 60, false).unwrap_err().to_string();
        assert!(error.contains("give less"), "{error}");
        check(16 << 20, false).unwrap();
    }
}
