//! Where the vCPUs' port and memory accesses go.
//!
//! A bus is built once and never changes, so a lookup takes no lock.

use std::ops::Range;
use std::sync::Arc;

use anyhow::{Result, bail};

/// Something that answers accesses in one address range. Called on vCPU
/// threads, from several at once: never waits for another process, but for the
/// write that turns a function's bus mastering off.
pub(crate) trait Target: Send + Sync {
    /// The guest reads `data.len()` bytes (1, 2, 4 or 8) at `offset` within
    /// the target's range; bytes that nothing answers are left as they are
    /// (the bus has set them to 0xff).
    fn read(&self, offset: u64, data: &mut [u8]);
    /// The guest writes `data` at `offset` within the target's range.
    fn write(&self, offset: u64, data: &[u8]);
}

/// One address space, of ports or of memory.
pub(crate) struct Bus {
    /// By rising address, none over another.
    targets: Vec<(Range<u64>, Arc<dyn Target>)>,
}

impl Bus {
    /// A bus of these targets.
    ///
    /// # Errors
    /// A range is empty or overlaps another: the address map is wrong.
    pub(crate) fn new(mut targets: Vec<(Range<u64>, Arc<dyn Target>)>) -> Result<Self> {
        targets.sort_by_key(|(range, _)| range.start);
        let mut end = 0;
        for (range, _) in &targets {
            if range.is_empty() || range.start < end {
                bail!("the address range {range:#x?} is empty or overlaps another");
            }
            end = range.end;
        }
        Ok(Self { targets })
    }

    /// The guest reads at `address`. What nothing answers reads as 0xff.
    pub(crate) fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((target, offset)) = self.find(address, data.len()) {
            target.read(offset, data);
        }
    }

    /// The guest writes at `address`. What nothing takes is dropped.
    pub(crate) fn write(&self, address: u64, data: &[u8]) {
        if let Some((target, offset)) = self.find(address, data.len()) {
            target.write(offset, data);
        }
    }

    /// The target of an access that lies within its range as a whole.
    fn find(&self, address: u64, length: usize) -> Option<(&dyn Target, u64)> {
        let after = self
            .targets
            .partition_point(|(range, _)| range.start <= address);
        let (range, target) = self.targets.get(after.checked_sub(1)?)?;
        let end = address.checked_add(length as u64)?;
        (end <= range.end).then(|| (target.as_ref(), address - range.start))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, Vec<u8>)>>);

    impl Target for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            if let Some(first) = data.first_mut() {
                *first = offset as u8;
            }
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    #[test]
    fn an_access_reaches_the_target_of_its_range_and_no_other() {
        let (low, high) = (Arc::new(Recorder::default()), Arc::new(Recorder::default()));
        let bus = Bus::new(vec![(0x20..0x28, high.clone()), (0x10..0x18, low.clone())]).unwrap();
        bus.write(0x10, &[1]);
        bus.write(0x17, &[2]);
        bus.write(0x20, &[3, 4]);
        for nowhere in [0, 0xf, 0x18, 0x28, u64::MAX] {
            bus.write(nowhere, &[9]);
        }
        assert_eq!(*low.0.lock().unwrap(), [(0, vec![1]), (7, vec![2])]);
        assert_eq!(*high.0.lock().unwrap(), [(0, vec![3, 4])]);
    }

    #[test]
    fn bytes_that_nothing_answers_read_as_ones() {
        let bus = Bus::new(vec![(0x10..0x18, Arc::new(Recorder::default()))]).unwrap();
        let read = |address| {
            let mut data = [0; 2];
            bus.read(address, &mut data);
            data
        };
        assert_eq!(read(0x12), [2, 0xff]);
        assert_eq!(read(0x20), [0xff, 0xff]);
        // Half in, half out: nobody's.
        assert_eq!(read(0x17), [0xff, 0xff]);
        assert_eq!(read(0x0f), [0xff, 0xff]);
        assert_eq!(read(u64::MAX), [0xff, 0xff]);
    }

    #[test]
    fn an_address_map_that_overlaps_is_refused() {
        let target = || Arc::new(Recorder::default());
        assert!(Bus::new(vec![(0..8, target()), (7..9, target())]).is_err());
        assert!(Bus::new(vec![(8..8, target())]).is_err());
        assert!(Bus::new(vec![(8..16, target()), (0..8, target())]).is_ok());
    }
}
