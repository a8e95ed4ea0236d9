//! A tap (Linux, Documentation/networking/tuntap.rst): how it is opened by
//! whoever may, known again by whoever is lent it, and left by the last of them.
//!
//! A descriptor is one queue of one tap. Every frame has a header before it,
//! that of virtio (virtio 1.3, section 5.1.6), so that frames with checksums and
//! segmentation still to be done can pass.
//!
//! The ioctls are in `ioctl`, and nothing else that is unsafe.

#[allow(unsafe_code)]
mod ioctl;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::libc;

use ioctl::Request;

/// Bytes before every frame of a tap that nobody has set up: `struct
/// virtio_net_hdr`.
pub const FRESH_HEADER: usize = 10;
/// Most queues of a tap (the kernel's MAX_TAP_QUEUES).
pub const MAX_QUEUES: u16 = 256;
/// An Ethernet address.
pub type Mac = [u8; 6];

const DEVICE: &str = "/dev/net/tun";
const IFF_TAP: u16 = 0x0002;
const IFF_MULTI_QUEUE: u16 = 0x0100;
const IFF_DETACH_QUEUE: u16 = 0x0400;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
/// Longest name of an interface, without the final zero.
const NAME: usize = 15;

/// Reads the address of one station, as `02:00:00:00:00:01`.
///
/// # Errors
/// A message that says what is wrong and what would be right.
pub fn parse_mac(text: &str) -> Result<Mac, String> {
    let wrong = || format!("`{text}` is no address; write it as 02:00:00:00:00:01");
    let mut mac = Mac::default();
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2);
        let digits = part.filter(|part| part.bytes().all(|digit| digit.is_ascii_hexdigit()));
        *byte = digits
            .and_then(|digits| u8::from_str_radix(digits, 16).ok())
            .ok_or_else(wrong)?;
    }
    if parts.next().is_some() {
        return Err(wrong());
    }
    if !is_station(&mac) {
        return Err(format!(
            "`{text}` is not the address of one station; make the first byte even, such as 02"
        ));
    }
    Ok(mac)
}

/// Whether an address is one station's: no group's, and not all zeroes.
pub fn is_station(mac: &Mac) -> bool {
    mac[0] & 1 == 0 && *mac != [0; 6]
}

/// The number of the interface `name` in the network namespace of this process.
///
/// # Errors
/// ENODEV when there is none, EINVAL when no interface can have that name.
pub fn index(name: &str) -> io::Result<u32> {
    ioctl::index(&std::ffi::CString::new(name)?)
}

/// Opens `queues` queues of the tap `name`, which must exist, without
/// blocking. A tap made with `multi_queue` can be opened with one queue too.
///
/// # Errors
/// A message that says what is wrong with which tap and what to do: it does
/// not exist, is busy, has one queue only, is no tap, or is somebody else's.
pub fn open(name: &str, queues: u16) -> Result<Vec<OwnedFd>, String> {
    if name.is_empty() || name.len() > NAME || name.contains(['/', '\0']) {
        return Err(format!(
            "`{name}` is not the name of a tap: give 1 to {NAME} letters without `/`"
        ));
    }
    if !(1..=MAX_QUEUES).contains(&queues) {
        return Err(format!(
            "tap {name}: {queues} queues; give 1 to {MAX_QUEUES}"
        ));
    }
    let multi = if queues > 1 { "multi_queue " } else { "" };
    // Naming one that is not there would make it.
    if index(name).is_err() {
        return Err(format!(
            "tap {name} does not exist; `ip tuntap add dev {name} mode tap {multi}user $USER` \
             makes it, and `ip link set {name} up` turns it on"
        ));
    }
    let flags = if queues > 1 { IFF_MULTI_QUEUE } else { 0 };
    (0..queues)
        .map(|taken| match queue(name, flags)? {
            Ok(fd) => Ok(fd),
            Err(Errno::EINVAL) => other_kind(name, queues),
            Err(Errno::E2BIG) if taken > 0 => Err(format!(
                "tap {name} is busy: of {queues} queues only {taken} are free, another process \
                 has the others; end that one, or use {taken}"
            )),
            Err(errno) => Err(refusal(name, errno)),
        })
        .collect()
}

/// The tap is not of the kind that was asked for first.
fn other_kind(name: &str, queues: u16) -> Result<OwnedFd, String> {
    let flags = if queues > 1 { 0 } else { IFF_MULTI_QUEUE };
    match queue(name, flags)? {
        Ok(fd) if queues == 1 => Ok(fd),
        Ok(_) | Err(Errno::EBUSY) => Err(format!(
            "tap {name} has one queue only; make it with `multi_queue` \
             (`ip tuntap add dev {name} mode tap multi_queue user $USER`), or use one queue"
        )),
        Err(Errno::EINVAL) => Err(format!(
            "{name} is not a tap: it is an interface of another kind; name a tap"
        )),
        Err(errno) => Err(refusal(name, errno)),
    }
}

fn refusal(name: &str, errno: Errno) -> String {
    match errno {
        Errno::EBUSY | Errno::E2BIG => format!(
            "tap {name} is busy: another process uses it; end that one, or name another tap"
        ),
        Errno::EPERM => format!(
            "tap {name} may not be used: {errno}; run as root or with CAP_NET_ADMIN, or make it \
             yours (`ip tuntap add dev {name} mode tap user $USER`)"
        ),
        errno => format!("tap {name} cannot be used: {errno}"),
    }
}

/// One more queue of a tap.
fn queue(name: &str, flags: u16) -> Result<nix::Result<OwnedFd>, String> {
    let file = device().map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
            format!("{DEVICE}: {error}; load the module (`modprobe tun`)")
        }
        _ => format!("{DEVICE} cannot be opened: {error}; run as root, or ask for access to it"),
    })?;
    let request = Request::new(name, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | flags);
    Ok(ioctl::name(file.as_fd(), &request).map(|()| file.into()))
}

fn device() -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(DEVICE)
}

/// Makes sure that `fd` is a queue of a tap, opened as [`open`] does it;
/// answers the tap's name.
///
/// # Errors
/// A message that says what is wrong with it and what to do.
pub fn identify(fd: BorrowedFd<'_>) -> Result<String, String> {
    let number = fd.as_raw_fd();
    let request = ioctl::identify(fd)
        .map_err(|errno| format!("descriptor {number} is not an open tap: {errno}"))?;
    let needed = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    if request.flags & needed != needed {
        return Err(format!(
            "tap {} (descriptor {number}) was opened without {}; \
             open it with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR",
            request.name(),
            match request.flags {
                flags if flags & IFF_TAP == 0 => "IFF_TAP",
                flags if flags & IFF_NO_PI == 0 => "IFF_NO_PI",
                _ => "IFF_VNET_HDR",
            }
        ));
    }
    Ok(request.name())
}

/// Makes a tap as new, by all descriptors that we have of it: no filter, no
/// offloads, a header of [`FRESH_HEADER`] bytes. These are the tap's and outlive
/// every descriptor of one that is persistent; which queues are attached, and
/// what waits in them, goes with the descriptors. A tap of which another process
/// has a queue is left as it is.
///
/// # Errors
/// Those of the ioctls: EBADFD when the tap is gone.
pub fn make_as_new(queues: &[OwnedFd]) -> nix::Result<()> {
    let Some(first) = queues.first().map(AsFd::as_fd) else {
        return Ok(());
    };
    if is_shared(queues, &ioctl::identify(first)?) {
        return Ok(());
    }
    ioctl::make_as_new(first, FRESH_HEADER as libc::c_int)
}

/// Whether another process has an attached queue of the tap, as far as can be
/// told: the kernel lets nobody else have one with a single queue, and of one in
/// another network namespace nothing is said.
fn is_shared(queues: &[OwnedFd], tap: &Request) -> bool {
    if tap.flags & IFF_MULTI_QUEUE == 0 {
        return false;
    }
    let attached = |queue: &&OwnedFd| {
        let found = ioctl::identify(queue.as_fd());
        found.is_ok_and(|queue| queue.flags & IFF_DETACH_QUEUE == 0)
    };
    let ours = queues.iter().filter(attached).count();
    let all = ioctl::attached_queues(&tap.name()).map(usize::try_from);
    all.is_ok_and(|all| all.is_ok_and(|all| all > ours))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_interface_has_are_refused() {
        for name in ["", "a/b", "sixteen-letters-", "a\0b"] {
            let error = open(name, 1).unwrap_err();
            assert!(error.contains("not the name of a tap"), "{error}");
        }
    }

    #[test]
    fn addresses_are_of_one_station() {
        assert_eq!(
            parse_mac("02:00:5e:Ff:00:10"),
            Ok([2, 0, 0x5e, 0xff, 0, 0x10])
        );
        for wrong in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "2:0:0:0:0:1",
            "+2:00:00:00:00:01",
            "02-00-00-00-00-01",
            "01:00:5e:00:00:01",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
        ] {
            assert!(parse_mac(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_tap_that_is_not_there_is_not_made() {
        let error = open("no-such-tap", 2).unwrap_err();
        assert!(error.contains("no-such-tap does not exist"), "{error}");
        assert!(error.contains("mode tap multi_queue"), "{error}");
        assert!(open("no-such-tap", 2).is_err());
        for queues in [0, 257] {
            assert!(open("no-such-tap", queues).unwrap_err().contains("give 1"));
        }
    }

    #[test]
    fn another_file_is_no_tap() {
        let file = File::open("/dev/null").unwrap();
        let error = identify(file.as_fd()).unwrap_err();
        assert!(error.contains("is not an open tap"), "{error}");
    }
}
