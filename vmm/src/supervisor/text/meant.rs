//! What the user may have meant by a word that is not known: one of ours that
//! is spelled nearly so, or that says what another VMM's word says.

/// Words of QEMU, cloud-hypervisor, crosvm and Firecracker, in one spelling
/// ([`plain`]), and ours for the same. Where there are two of ours, the one
/// that is known in that place is meant.
const SISTERS: &[(&str, &str)] = &[
    // Disks.
    ("file", "path"),
    ("filename", "path"),
    ("image", "path"),
    ("pathonhost", "path"),
    ("ro", "readonly"),
    ("isreadonly", "readonly"),
    ("odirect", "direct"),
    ("writecache", "wce"),
    ("configwce", "wce"),
    ("writeback", "wce"),
    ("driveid", "id"),
    ("logicalblocksize", "block-size"),
    ("physicalblocksize", "block-size"),
    ("sectorsize", "block-size"),
    ("driver", "format"),
    ("imageformat", "format"),
    ("imagetype", "format"),
    // Network cards.
    ("ifname", "tap"),
    ("tapname", "tap"),
    ("hostdevname", "tap"),
    ("macaddr", "mac"),
    ("macaddress", "mac"),
    ("guestmac", "mac"),
    ("hostmtu", "mtu"),
    ("server", "listen"),
    ("netid", "id"),
    ("ifaceid", "id"),
    // Devices that others serve.
    ("chardev", "socket"),
    ("vhostsocket", "socket"),
    ("vhostusersocket", "socket"),
    ("addrpath", "socket"),
    ("reconnect", "wait"),
    ("timeout", "wait"),
    ("type", "virtio-id"),
    ("deviceid", "virtio-id"),
    ("configlen", "config-size"),
    // Queues.
    ("numqueues", "queues"),
    ("vqpairs", "queues"),
    ("mq", "queues"),
    ("size", "queue-size"),
    // A whole VM, as a file has it.
    ("bios", "kernel"),
    ("image", "kernel"),
    ("append", "cmdline"),
    ("bootargs", "cmdline"),
    ("kernelcmdline", "cmdline"),
    ("smp", "cpus"),
    ("vcpus", "cpus"),
    ("vcpucount", "cpus"),
    ("mem", "memory"),
    ("ram", "memory"),
    ("memsizemib", "memory"),
    ("serial", "console"),
    ("drive", "disk"),
    ("block", "disk"),
    ("blk", "disk"),
    ("nic", "net"),
    ("network", "net"),
    ("netdev", "net"),
    ("entropy", "rng"),
    ("vhostuser", "device"),
    // Values.
    ("true", "on"),
    ("yes", "on"),
    ("1", "on"),
    ("false", "off"),
    ("no", "off"),
    ("0", "off"),
    ("io", "pio"),
    ("memory", "mmio"),
    ("ioeventfd", "kvm"),
    ("thread", "worker"),
    ("vcpu", "exit"),
    ("none", "null"),
    ("shutdown", "exit"),
    ("poweroff", "exit"),
    ("reboot", "restart"),
    ("reset", "restart"),
];

/// The one of the words that are `known` here that `word` may have been meant
/// for, if any comes near.
pub(crate) fn meant<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let word = plain(word);
    if word.is_empty() {
        return None;
    }
    let is_known = |ours: &str| known.iter().find(|name| **name == ours).copied();
    let same = || known.iter().find(|name| plain(name) == word).copied();
    let sister = || {
        let mut sisters = SISTERS.iter().filter(|(theirs, _)| *theirs == word);
        sisters.find_map(|(_, ours)| is_known(ours))
    };
    // A slip in three letters; none in a word of two, which could be anything.
    let slips = |name: &str| strsim::osa_distance(&word, &plain(name));
    let most = |name: &str| name.len().max(word.len()) / 3;
    let near = || {
        let near = known.iter().filter(|name| slips(name) <= most(name));
        near.min_by_key(|name| slips(name)).copied()
    };
    same().or_else(sister).or_else(near)
}

/// What comes after an error about `word`: the question whether another was
/// meant, or nothing.
pub(crate) fn question(word: &str, known: &[&str]) -> String {
    let meant = meant(word, known).map(|meant| format!("; did you mean `{meant}`?"));
    meant.unwrap_or_default()
}

/// A message of serde's as the user hears it: one about an unknown field or
/// variant, which names those that there are, ends with that question.
pub(crate) fn told(message: &str) -> String {
    format!("{message}{}", question_after(message))
}

fn question_after(message: &str) -> String {
    let unknown = message.strip_prefix("unknown ");
    let Some((_, rest)) = unknown.and_then(|rest| rest.split_once(" `")) else {
        return String::new();
    };
    // What the user wrote may hold anything, so the known ones are behind the
    // last word that introduces them.
    let Some((word, known)) = rest.rsplit_once("`, expected ") else {
        return String::new();
    };
    let known: Vec<_> = known.split('`').skip(1).step_by(2).collect();
    question(word, &known)
}

/// A word without what is only spelling: case, `-`, `_`, `.`, and spaces.
fn plain(word: &str) -> String {
    let letters = word.chars().filter(|letter| !"-_. ".contains(*letter));
    letters.flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DISK: &[&str] = &[
        "path",
        "socket",
        "backend",
        "wait",
        "readonly",
        "direct",
        "wce",
        "queues",
        "queue-size",
        "serial",
        "id",
    ];

    #[test]
    fn a_known_word_in_another_spelling_is_meant() {
        for (word, ours) in [
            ("read-only", "readonly"),
            ("READONLY", "readonly"),
            ("queue_size", "queue-size"),
            ("queuesize", "queue-size"),
        ] {
            assert_eq!(meant(word, DISK), Some(ours), "{word}");
        }
    }

    #[test]
    fn a_word_of_a_sister_means_ours_where_we_have_it() {
        for (word, ours) in [
            ("ro", "readonly"),
            ("is_read_only", "readonly"),
            ("file", "path"),
            ("path_on_host", "path"),
            ("num-queues", "queues"),
            ("num_queues", "queues"),
            ("vhost_socket", "socket"),
            ("chardev", "socket"),
            ("size", "queue-size"),
        ] {
            assert_eq!(meant(word, DISK), Some(ours), "{word}");
        }
        assert_eq!(meant("image", &["kernel", "initrd"]), Some("kernel"));
        assert_eq!(meant("ifname", &["tap", "mac"]), Some("tap"));
        assert_eq!(meant("mac_address", &["tap", "mac"]), Some("mac"));
        assert_eq!(meant("ifname", DISK), None);
    }

    #[test]
    fn a_slip_of_the_hand_is_seen_and_another_word_is_not_bent() {
        for (word, ours) in [
            ("pth", Some("path")),
            ("sokcet", Some("socket")),
            ("quues", Some("queues")),
            ("serail", Some("serial")),
            ("queue-sise", Some("queue-size")),
            ("speed", None),
            ("x", None),
            ("", None),
            ("-", None),
            ("cache", None),
            ("iommu", None),
        ] {
            assert_eq!(meant(word, DISK), ours, "{word}");
        }
        assert_eq!(meant("mtu", &["mac", "tap"]), None);
    }

    #[test]
    fn a_message_about_an_unknown_word_gets_its_question() {
        for (message, question) in [
            (
                "unknown field `pth`, expected one of `path`, `socket`",
                "; did you mean `path`?",
            ),
            (
                "unknown variant `kmv`, expected one of `kvm`, `exit`, `worker`",
                "; did you mean `kvm`?",
            ),
            (
                "unknown variant `PIO`, expected `mmio` or `pio`",
                "; did you mean `pio`?",
            ),
            ("unknown field `speed`, expected `path`", ""),
            ("invalid type: string \"a\", expected u64", ""),
        ] {
            assert_eq!(question_after(message), question, "{message}");
        }
    }

    proptest! {
        #[test]
        fn no_word_is_too_strange_to_ask_about(word in ".*") {
            let _ = question(&word, DISK);
            let _ = question_after(&word);
            let _ = question_after(&format!("unknown field `{word}`, expected `path`"));
        }

        #[test]
        fn a_known_word_is_what_it_is(index in 0..DISK.len()) {
            prop_assert_eq!(meant(DISK[index], DISK), Some(DISK[index]));
        }
    }

    /// A table that names what nobody has would be dead.
    #[test]
    fn every_sister_leads_to_a_word_of_ours_and_is_none_itself() {
        for (theirs, ours) in SISTERS {
            assert_eq!(*theirs, plain(theirs), "in one spelling");
            assert_ne!(*theirs, plain(ours));
        }
    }
}
