//! The state machine behind the common configuration, the ISR and the device
//! configuration (virtio 1.3, sections 2.1, 3.1 and 4.1.4).
//!
//! ```text
//!            FEATURES_OK accepted       DRIVER_OK
//!  initial ──────────────────────▶ agreed ───────▶ running ──▶ Event::DriverOk
//!     ▲  ▲                            │               │
//!     │  └──────── status := 0 ───────┘               │ status := 0
//!     │                                               ▼
//!     └────────── reset_done() ◀────────────────── resetting ──▶ Event::Reset
//! ```
//!
//! In `resetting` the status still reads as before: the guest sees the reset
//! as done when the device's owner has taken the rings back from the back-end.
//! Writes other than to the selectors are ignored until then.

use super::event::{Event, Shape, Source};
use super::queue::QueueRegisters;
use super::{F_VERSION_1, NO_VECTOR, TRANSPORT_FEATURES, status};

/// The registers of one device.
#[derive(Clone, Debug)]
pub(crate) struct Registers {
    shape: Shape,
    offered: u64,
    driver_features: u64,
    device_feature_select: u32,
    driver_feature_select: u32,
    status: u8,
    resetting: bool,
    generation: u8,
    config_vector: u16,
    queue_select: u16,
    queues: Vec<QueueRegisters>,
    isr: u8,
    config: Vec<u8>,
    config_writes: u32,
}

/// Length of the common configuration: no admin queue, no notification data,
/// no queue reset, so it ends with `queue_device`.
pub(crate) const COMMON_LEN: usize = 56;
/// Bit of the ISR: the configuration has changed.
const ISR_CONFIG: u8 = 2;

impl Registers {
    /// The registers of a device whose back-end is not known yet: it offers
    /// nothing and its configuration is zero.
    pub(crate) fn new(shape: Shape) -> Self {
        Self {
            offered: 0,
            driver_features: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            status: 0,
            resetting: false,
            generation: 0,
            config_vector: NO_VECTOR,
            queue_select: 0,
            queues: vec![QueueRegisters::new(shape.queue_size); usize::from(shape.queues)],
            isr: 0,
            config: vec![0; shape.config_len],
            config_writes: 0,
            shape,
        }
    }

    /// Sets what the driver is offered: of the back-end's features those that
    /// this kind of device lets through, and those of transport and rings that
    /// the machine knows. Returns the features offered.
    pub(crate) fn offer(&mut self, backend_features: u64) -> u64 {
        self.offered = backend_features & (self.shape.device_features | TRANSPORT_FEATURES);
        self.offered
    }

    /// What the driver is offered.
    pub(crate) fn offered(&self) -> u64 {
        self.offered
    }

    /// The features the driver acknowledged; final once FEATURES_OK is set.
    pub(crate) fn driver_features(&self) -> u64 {
        self.driver_features
    }

    /// The features by which a driver goes that has come: those that it has acknowledged or,
    /// until they are final, those that it may.
    pub(crate) fn goes_by(&self) -> Option<u64> {
        let has_come = self.status & status::DRIVER != 0 && self.status & status::FAILED == 0;
        let agreed = self.status & status::FEATURES_OK != 0;
        (has_come && !self.resetting).then_some(match agreed {
            true => self.driver_features,
            false => self.offered,
        })
    }

    /// `device_status` as the driver reads it.
    #[cfg(test)]
    pub(crate) fn status(&self) -> u8 {
        self.status
    }

    /// Reads the common configuration. Reads have no side effects, so any
    /// offset and width is answered with the bytes that lie there; beyond the
    /// end they are zero.
    pub(crate) fn read_common(&self, offset: usize, data: &mut [u8]) {
        copy_from(&self.common(), offset, data);
    }

    /// Writes to the common configuration. A write that is not exactly one
    /// field (or one half of an address) is ignored.
    pub(crate) fn write_common(&mut self, offset: usize, data: &[u8]) -> Vec<Event> {
        match (offset, data) {
            (0, &[a, b, c, d]) => self.device_feature_select = u32::from_le_bytes([a, b, c, d]),
            (8, &[a, b, c, d]) => self.driver_feature_select = u32::from_le_bytes([a, b, c, d]),
            (22, &[a, b]) => self.queue_select = u16::from_le_bytes([a, b]),
            (20, &[value]) => return self.write_status(value),
            _ if self.resetting => {}
            (12, &[a, b, c, d]) => self.write_driver_features(u32::from_le_bytes([a, b, c, d])),
            (16, &[a, b]) => return self.write_config_vector(u16::from_le_bytes([a, b])),
            (24..COMMON_LEN, data) => return self.write_queue(offset, data),
            _ => {}
        }
        Vec::new()
    }

    /// Reads the ISR, which clears it (virtio 1.3, section 4.1.4.5).
    pub(crate) fn read_isr(&mut self) -> u8 {
        std::mem::take(&mut self.isr)
    }

    /// Reads the device configuration; zero beyond its end.
    pub(crate) fn read_config(&self, offset: usize, data: &mut [u8]) {
        copy_from(&self.config, offset, data);
    }

    /// The device configuration as the driver sees it.
    pub(crate) fn config(&self) -> &[u8] {
        &self.config
    }

    /// Writes to the device configuration. The driver reads back what it wrote
    /// until the back-end has been asked what it made of it.
    pub(crate) fn write_config(&mut self, offset: usize, data: &[u8]) -> Vec<Event> {
        let end = offset.saturating_add(data.len());
        let (Some(bytes), Ok(at)) = (self.config.get_mut(offset..end), u32::try_from(offset))
        else {
            return Vec::new();
        };
        if self.resetting || data.is_empty() {
            return Vec::new();
        }
        bytes.copy_from_slice(data);
        self.config_writes = self.config_writes.saturating_add(1);
        vec![Event::ConfigWrite {
            offset: at,
            data: data.to_vec(),
        }]
    }

    /// The back-end has been told one write of the driver's.
    pub(crate) fn config_written(&mut self) {
        self.config_writes = self.config_writes.saturating_sub(1);
    }

    /// The configuration as the back-end gives it. Returns whether the driver
    /// is to be told, by a configuration interrupt. Nothing happens while a
    /// write of the driver's is still under way: a later call will have both.
    pub(crate) fn set_config(&mut self, bytes: &[u8]) -> bool {
        if self.config_writes != 0 {
            return false;
        }
        let mut config = vec![0; self.shape.config_len];
        copy_from(bytes, 0, &mut config);
        if config == self.config {
            return false;
        }
        self.config = config;
        self.generation = self.generation.wrapping_add(1);
        self.set_isr()
    }

    /// The device is broken until the driver resets it. Returns whether the
    /// driver is to be told, by a configuration interrupt (section 2.1.2).
    pub(crate) fn needs_reset(&mut self) -> bool {
        if self.status & status::DRIVER_OK == 0 || self.resetting {
            return false;
        }
        self.status |= status::NEEDS_RESET;
        self.set_isr()
    }

    /// The rings are back: the reset that the driver asked for is done.
    pub(crate) fn reset_done(&mut self) {
        if self.resetting {
            self.clear();
        }
    }

    /// Sets the ISR if the driver listens; returns whether it does.
    fn set_isr(&mut self) -> bool {
        let listens = self.status & status::DRIVER_OK != 0 && !self.resetting;
        if listens {
            self.isr |= ISR_CONFIG;
        }
        listens
    }

    fn clear(&mut self) {
        self.driver_features = 0;
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.status = 0;
        self.resetting = false;
        self.config_vector = NO_VECTOR;
        self.queue_select = 0;
        self.isr = 0;
        for queue in &mut self.queues {
            queue.reset();
        }
    }

    fn write_status(&mut self, value: u8) -> Vec<Event> {
        if value == 0 {
            return self.write_reset();
        }
        if self.resetting {
            return Vec::new();
        }
        // A driver never clears a bit, and NEEDS_RESET is not its to set.
        self.status |= value & (status::ACKNOWLEDGE | status::DRIVER | status::FAILED);
        let fits = self.driver_features & !self.offered == 0;
        if value & status::FEATURES_OK != 0 && fits && self.driver_features & F_VERSION_1 != 0 {
            self.status |= status::FEATURES_OK;
        }
        let agreed = self.status & status::FEATURES_OK != 0;
        let already = self.status & status::DRIVER_OK != 0;
        if value & status::DRIVER_OK == 0 || !agreed || already {
            return Vec::new();
        }
        self.status |= status::DRIVER_OK;
        let rings = (0..).zip(&self.queues).filter_map(|(i, q)| q.ring(i));
        vec![Event::DriverOk {
            features: self.driver_features,
            rings: rings.collect(),
        }]
    }

    fn write_reset(&mut self) -> Vec<Event> {
        if self.resetting {
            return Vec::new();
        }
        if self.status & status::DRIVER_OK == 0 {
            // No ring has been handed out, so there is nothing to wait for.
            self.clear();
            return vec![Event::VectorsCleared];
        }
        self.resetting = true;
        self.config_vector = NO_VECTOR;
        for queue in &mut self.queues {
            queue.vector = NO_VECTOR;
        }
        vec![Event::VectorsCleared, Event::Reset]
    }

    fn write_driver_features(&mut self, value: u32) {
        if self.status & status::FEATURES_OK != 0 {
            return;
        }
        let (shift, mask) = match self.driver_feature_select {
            0 => (0, !0u64 << 32),
            1 => (32, !0u64 >> 32),
            _ => return,
        };
        self.driver_features = self.driver_features & mask | u64::from(value) << shift;
    }

    fn write_config_vector(&mut self, vector: u16) -> Vec<Event> {
        self.config_vector = self.checked_vector(vector);
        vec![Event::Vector {
            source: Source::Config,
            vector: self.config_vector,
        }]
    }

    /// A vector that the device cannot have reads back as [`NO_VECTOR`]
    /// (section 4.1.5.1.2.1).
    fn checked_vector(&self, vector: u16) -> u16 {
        if vector < self.shape.vectors {
            vector
        } else {
            NO_VECTOR
        }
    }

    fn write_queue(&mut self, offset: usize, data: &[u8]) -> Vec<Event> {
        let index = self.queue_select;
        let running = self.status & status::DRIVER_OK != 0;
        let vector = match data {
            &[a, b] => self.checked_vector(u16::from_le_bytes([a, b])),
            _ => NO_VECTOR,
        };
        let Some(queue) = self.queues.get_mut(usize::from(index)) else {
            return Vec::new();
        };
        match (offset, data) {
            (24, &[a, b]) => queue.set_size(u16::from_le_bytes([a, b])),
            (26, &[_, _]) => {
                queue.vector = vector;
                let source = Source::Queue(index);
                return vec![Event::Vector { source, vector }];
            }
            // Only 1 may be written (section 4.1.4.3.2).
            (28, &[1, 0]) if !queue.enabled => {
                queue.enabled = true;
                let ring = queue.ring(index).filter(|_| running);
                return ring.map(Event::RingEnabled).into_iter().collect();
            }
            _ if queue.enabled => {}
            (32..40, data) => write_address(&mut queue.descriptors, offset - 32, data),
            (40..48, data) => write_address(&mut queue.available, offset - 40, data),
            (48..56, data) => write_address(&mut queue.used, offset - 48, data),
            _ => {}
        }
        Vec::new()
    }

    /// The common configuration as it reads now.
    fn common(&self) -> [u8; COMMON_LEN] {
        let word = |features: u64, select: u32| match select {
            0 => features as u32,
            1 => (features >> 32) as u32,
            _ => 0,
        };
        let mut bytes = Vec::with_capacity(COMMON_LEN);
        bytes.extend(self.device_feature_select.to_le_bytes());
        bytes.extend(word(self.offered, self.device_feature_select).to_le_bytes());
        bytes.extend(self.driver_feature_select.to_le_bytes());
        bytes.extend(word(self.driver_features, self.driver_feature_select).to_le_bytes());
        bytes.extend(self.config_vector.to_le_bytes());
        bytes.extend(self.shape.queues.to_le_bytes());
        bytes.extend([self.status, self.generation]);
        bytes.extend(self.queue_select.to_le_bytes());
        match self.queues.get(usize::from(self.queue_select)) {
            Some(queue) => {
                bytes.extend(queue.size.to_le_bytes());
                bytes.extend(queue.vector.to_le_bytes());
                bytes.extend(u16::from(queue.enabled).to_le_bytes());
                bytes.extend(self.queue_select.to_le_bytes());
                bytes.extend(queue.descriptors.to_le_bytes());
                bytes.extend(queue.available.to_le_bytes());
                bytes.extend(queue.used.to_le_bytes());
            }
            // Size 0: there is no such queue (section 4.1.4.3.1).
            None => {
                bytes.extend(0u16.to_le_bytes());
                bytes.extend(NO_VECTOR.to_le_bytes());
                bytes.resize(COMMON_LEN, 0);
            }
        }
        let mut out = [0; COMMON_LEN];
        copy_from(&bytes, 0, &mut out);
        out
    }
}

/// Fills `to` with the bytes of `from` at `offset`, and zeroes beyond its end.
fn copy_from(from: &[u8], offset: usize, to: &mut [u8]) {
    let rest = from.get(offset..).unwrap_or_default();
    for (index, byte) in to.iter_mut().enumerate() {
        *byte = rest.get(index).copied().unwrap_or(0);
    }
}

/// Writes a half or the whole of a 64-bit address.
fn write_address(address: &mut u64, offset: usize, data: &[u8]) {
    match (offset, data) {
        (0, &[a, b, c, d]) => {
            *address = *address & !0u64 << 32 | u64::from(u32::from_le_bytes([a, b, c, d]));
        }
        (4, &[a, b, c, d]) => {
            *address = *address & !0u64 >> 32 | u64::from(u32::from_le_bytes([a, b, c, d])) << 32;
        }
        (0, data) => {
            if let Ok(bytes) = data.try_into() {
                *address = u64::from_le_bytes(bytes);
            }
        }
        _ => {}
    }
}
