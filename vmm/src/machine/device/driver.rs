//! What the driver has set up, and will not say again. It belongs to the device:
//! it outlives back-ends, is lent to each that starts, and ends with a reset.

use crate::machine::frontend::{Inflight, Stopped};
use crate::machine::virtio::Ring;

/// What is known of the driver since the last reset.
#[derive(Debug, Default)]
pub(crate) struct Driver {
    ready: Option<Ready>,
    has_configured: bool,
    inflight: Option<Inflight>,
    was_served: bool,
}

/// A driver that uses the device.
#[derive(Debug)]
struct Ready {
    features: u64,
    /// Each with the index at which it begins, or goes on; `None`: a back-end was
    /// lost while it served the ring, and only the used index tells.
    rings: Vec<(Ring, Option<u16>)>,
}

impl Driver {
    /// It is ready, with these rings, and has acknowledged `features`. One that has
    /// just reset the device begins at 0 (virtio 1.3, section 2.7.13).
    pub(crate) fn is_ready_with(&mut self, features: u64, rings: Vec<Ring>) {
        let rings = rings.into_iter().map(|ring| (ring, Some(0))).collect();
        self.ready = Some(Ready { features, rings });
    }

    /// It has enabled one more ring. Returns whether it is ready: if it is not,
    /// the ring is among those that it will be ready with.
    pub(crate) fn adds(&mut self, ring: Ring) -> bool {
        if let Some(ready) = &mut self.ready {
            ready.rings.push((ring, Some(0)));
        }
        self.uses_the_device()
    }

    /// Whether it is ready.
    pub(crate) fn uses_the_device(&self) -> bool {
        self.ready.is_some()
    }

    /// Whether there is anything of it that a back-end was told.
    pub(crate) fn has_left_marks(&self) -> bool {
        self.uses_the_device() || self.has_configured
    }

    /// The features that it has acknowledged, if it is ready.
    pub(crate) fn features(&self) -> Option<u64> {
        self.ready.as_ref().map(|ready| ready.features)
    }

    /// Its rings, each with the index at which it begins, or goes on, if that is
    /// known.
    pub(crate) fn rings(&self) -> impl Iterator<Item = (Ring, Option<u16>)> {
        let rings = self.ready.iter().flat_map(|ready| &ready.rings);
        rings.copied()
    }

    /// The ring of a queue.
    pub(crate) fn ring(&self, queue: u16) -> Option<Ring> {
        let mut rings = self.rings().map(|(ring, _)| ring);
        rings.find(|ring| ring.index == queue)
    }

    /// This ring was handed back and goes on where it was.
    pub(crate) fn rests(&mut self, stopped: &Stopped) {
        let rings = self.ready.iter_mut().flat_map(|ready| &mut ready.rings);
        for (_, base) in rings.filter(|(ring, _)| ring.index == stopped.queue) {
            *base = Some(stopped.base);
        }
    }

    /// A back-end was lost that may have served any of its rings.
    pub(crate) fn is_cut_off(&mut self) {
        for (_, base) in self.ready.iter_mut().flat_map(|ready| &mut ready.rings) {
            *base = None;
        }
    }

    /// The rings of which `is_lost` is true do not go on, whoever serves them.
    pub(crate) fn gives_up(&mut self, is_lost: impl Fn(u16) -> bool) {
        if let Some(ready) = &mut self.ready {
            ready.rings.retain(|(ring, _)| !is_lost(ring.index));
        }
    }

    /// A back-end was told what it has written to the configuration, or goes by there.
    pub(crate) fn has_configured(&mut self) {
        self.has_configured = true;
    }

    /// Where the inflight region is: that of the last back-end which kept one.
    pub(crate) fn inflight(&mut self) -> &mut Option<Inflight> {
        &mut self.inflight
    }

    /// A back-end serves it, and may have been told something by it from now on.
    pub(crate) fn is_served(&mut self) {
        self.was_served = true;
    }

    /// Whether any back-end has been there since its last reset.
    pub(crate) fn was_served(&self) -> bool {
        self.was_served
    }

    /// It has reset the device: there is nothing of it any more.
    pub(crate) fn is_gone(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(index: u16) -> Ring {
        Ring {
            index,
            size: 64,
            descriptors: 0x1000,
            available: 0x2000,
            used: 0x3000,
        }
    }

    fn bases(driver: &Driver) -> Vec<(u16, Option<u16>)> {
        driver
            .rings()
            .map(|(ring, base)| (ring.index, base))
            .collect()
    }

    #[test]
    fn a_ring_that_was_handed_back_goes_on_where_it_was_and_a_lost_one_not_at_all() {
        let mut driver = Driver::default();
        assert!(!driver.adds(ring(3)), "it is not ready");
        driver.is_ready_with(7, vec![ring(0), ring(2)]);
        assert!(driver.adds(ring(1)));
        assert_eq!(bases(&driver), [(0, Some(0)), (2, Some(0)), (1, Some(0))]);
        driver.rests(&Stopped::at(2, 9));
        driver.rests(&Stopped::at(1, 5));
        assert_eq!(bases(&driver), [(0, Some(0)), (2, Some(9)), (1, Some(5))]);
        driver.gives_up(|queue| queue == 2);
        assert_eq!(bases(&driver), [(0, Some(0)), (1, Some(5))]);
        driver.is_cut_off();
        assert_eq!(bases(&driver), [(0, None), (1, None)]);
        assert_eq!(driver.ring(2), None);
        assert_eq!(driver.features(), Some(7));
    }

    #[test]
    fn nothing_of_it_outlives_a_reset() {
        let mut driver = Driver::default();
        driver.has_configured();
        driver.is_served();
        assert!(!driver.uses_the_device() && driver.has_left_marks());
        driver.is_ready_with(7, vec![ring(0)]);
        *driver.inflight() = Some(Inflight::some());
        driver.is_gone();
        assert!(!driver.uses_the_device());
        assert!(!driver.has_left_marks() && !driver.was_served());
        assert_eq!(bases(&driver), []);
        assert!(driver.inflight().is_none());
    }
}
