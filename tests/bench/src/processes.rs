//! The processes of a VM, and the processor time that they have used.

use std::fs;

use anyhow::{Context, Result};

/// Processor time of a VM's processes, in nanoseconds. What the kernel does
/// for a system call, the host's network stack included, counts for who made it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    /// The threads that run vCPUs.
    pub vcpus: u64,
    /// All others: the devices, mostly.
    pub devices: u64,
}

impl Cpu {
    /// What a process and its descendants have used so far.
    pub fn of_family(pid: u32) -> Result<Self> {
        let mut cpu = Self::default();
        for pid in family(pid)? {
            for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
                let path = thread?.path();
                // A thread may end meanwhile; those of the data path do not.
                let Ok(name) = fs::read_to_string(path.join("comm")) else {
                    continue;
                };
                let Ok(stat) = fs::read_to_string(path.join("schedstat")) else {
                    continue;
                };
                let time = stat.split_whitespace().next().unwrap_or_default();
                let time: u64 = time.parse().context("a thread's schedstat")?;
                if is_vcpu(&name) {
                    cpu.vcpus += time;
                } else {
                    cpu.devices += time;
                }
            }
        }
        Ok(cpu)
    }

    /// What was used since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            vcpus: self.vcpus.saturating_sub(earlier.vcpus),
            devices: self.devices.saturating_sub(earlier.devices),
        }
    }

    /// Of two VMs together.
    pub fn and(self, other: Self) -> Self {
        Self {
            vcpus: self.vcpus + other.vcpus,
            devices: self.devices + other.devices,
        }
    }

    /// Both kinds.
    pub fn all(self) -> u64 {
        self.vcpus + self.devices
    }
}

/// Outboard's and QEMU's (`debug-threads=on`) names.
fn is_vcpu(name: &str) -> bool {
    name.starts_with("vcpu") || name.starts_with("CPU ")
}

/// User and system time of one process, in nanoseconds, to a clock tick; also
/// of one that has ended and was not waited for.
pub fn time(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(')').context("a process's stat")?;
    let words: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok());
    let (Some(user), Some(system)) = (ticks(11), ticks(12)) else {
        anyhow::bail!("process {pid} has no times: {stat}");
    };
    // USER_HZ is 100 on every x86.
    Ok((user + system) * 10_000_000)
}

/// A process and all that descend from it.
pub fn family(pid: u32) -> Result<Vec<u32>> {
    let mut all = vec![pid];
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
        .with_context(|| format!("the children of process {pid}"))?;
    for child in children.split_whitespace() {
        all.extend(family(child.parse()?)?);
    }
    Ok(all)
}
