//! What comes with requests. Payloads are read exactly: one byte more or less than the
//! specification says is an error.

use std::os::fd::OwnedFd;

use outboard_protocol::wire::{Message, malformed};
use vhost::vhost_user::message::{FrontendReq, VhostUserConfig, VhostUserInflight};
use vm_memory::ByteValued;

use super::Fault;
use crate::event::Event;

/// Bit 8 of a KICK, CALL or ERR payload: no descriptor comes along.
const NO_FD: u64 = 1 << 8;
const INDEX: u64 = 0xff;

/// Whether the specification lets descriptors come with this request.
pub(super) fn brings_fds(request: FrontendReq) -> bool {
    use FrontendReq as R;
    matches!(
        request,
        R::SET_MEM_TABLE
            | R::ADD_MEM_REG
            | R::REM_MEM_REG
            | R::SET_LOG_BASE
            | R::SET_LOG_FD
            | R::SET_VRING_KICK
            | R::SET_VRING_CALL
            | R::SET_VRING_ERR
            | R::SET_BACKEND_REQ_FD
            | R::SET_INFLIGHT_FD
            | R::GPU_SET_SOCKET
            | R::SET_DEVICE_STATE_FD
    )
}

pub(super) fn empty(message: &Message) -> Result<(), Fault> {
    if message.payload.is_empty() {
        return Ok(());
    }
    let request = message.header.request;
    Err(malformed(format!("a payload with request {request}")).into())
}

/// A `T` at the front of the payload, and the rest.
pub(super) fn split<T: ByteValued + Default>(message: &Message) -> Result<(T, &[u8]), Fault> {
    let request = message.header.request;
    message
        .payload
        .split_at_checked(size_of::<T>())
        .map(|(head, rest)| (decode(head), rest))
        .ok_or_else(|| malformed(format!("request {request} with a short payload")).into())
}

/// Reads a `T` from bytes of exactly its length.
pub(super) fn decode<T: ByteValued + Default>(bytes: &[u8]) -> T {
    let mut value = T::default();
    for (to, from) in value.as_mut_slice().iter_mut().zip(bytes) {
        *to = *from;
    }
    value
}

pub(super) fn config(message: &Message) -> Result<(VhostUserConfig, &[u8]), Fault> {
    let (head, bytes) = split::<VhostUserConfig>(message)?;
    let same = usize::try_from(head.size).is_ok_and(|size| size == bytes.len());
    if !same {
        return Err(malformed("a configuration message of another length").into());
    }
    Ok((head, bytes))
}

/// The structure ends with 4 bytes of padding in QEMU and in most others, and
/// without by the letter of the specification.
pub(super) fn inflight(message: &Message) -> Result<VhostUserInflight, Fault> {
    let length = message.payload.len();
    if length != size_of::<VhostUserInflight>() && length != UNPADDED_INFLIGHT {
        return Err(malformed("an inflight description of another length").into());
    }
    Ok(decode(&message.payload))
}

const UNPADDED_INFLIGHT: usize = 20;

/// The reply in the form of the request.
pub(super) fn trimmed(reply: &VhostUserInflight, request: &Message) -> Vec<u8> {
    let mut bytes = reply.as_slice().to_vec();
    bytes.truncate(request.payload.len());
    bytes
}

/// Queue index and descriptor of a KICK, CALL or ERR.
pub(super) fn vring_fd(mut message: Message) -> Result<(u32, Option<Event>), Fault> {
    let payload: u64 = message.body()?;
    if payload & !(NO_FD | INDEX) != 0 {
        return Err(malformed(format!("queue index {payload:#x}")).into());
    }
    let fd: Option<OwnedFd> = if payload & NO_FD == 0 {
        Some(message.one_fd()?)
    } else if message.fds.is_empty() {
        None
    } else {
        return Err(malformed("a descriptor where there should be none").into());
    };
    // Eight bits fit.
    let index = u32::try_from(payload & INDEX).unwrap_or(u32::MAX);
    let event = fd.map(|fd| Event::lent(fd).ok_or(NO_EVENTFD)).transpose();
    Ok((index, event.map_err(|why| Fault::Refused(why.into()))?))
}

const NO_EVENTFD: &str = "it brings a descriptor that is no eventfd";
