//! Our back-ends under QEMU with a Linux guest: three VMs, in which
//! many things are tried.
//!
//! - the first tries what a device does for its driver, reboots the guest,
//!   and takes the devices out and puts them back;
//! - in the second our back-ends end, and are killed, under load.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use outboard_e2e::eventually;
use outboard_e2e::products::Products;
use outboard_peers::guest::Guest;
use outboard_peers::program::{self, Program};
use outboard_peers::qemu::Qemu;
use outboard_peers::table::Outcome;
use serde_json::json;
use tempfile::TempDir;

use crate::network::{self, Echo, Peer, Tap};
use crate::steps::Steps;
use crate::{Cell, FRONT_ENDS, Need};

const BLK: &str = "outboard-blk";
const NET: &str = "outboard-net";
const RNG: &str = "outboard-rng";

const NEEDS: &[Need] = &[
    Need::LinuxGuest,
    Need::Program("qemu-system-x86_64"),
    Need::Root,
    Need::Program("ip"),
];

const SIZE: u64 = 32 << 20;

/// Which of the two VMs tries it.
type Vm = fn() -> &'static Steps;

pub fn cells() -> Vec<Cell> {
    let version = program::version("qemu-system-x86_64").unwrap_or_default();
    let tried: [(&'static str, &'static str, Vm); 18] = [
        (BLK, "data compared", devices),
        (NET, "data compared", devices),
        (RNG, "data compared", devices),
        (BLK, "4 queues", devices),
        (NET, "4 queues", devices),
        (BLK, "discard", devices),
        (BLK, "write zeroes", devices),
        (BLK, "guest reboot", devices),
        (NET, "guest reboot", devices),
        (RNG, "guest reboot", devices),
        (RNG, "unplug and replug", entropy_replug),
        (BLK, "unplug and replug", devices),
        (NET, "unplug and replug", devices),
        (BLK, "SIGTERM under load, reconnect", restarts),
        (BLK, "SIGKILL under load, reconnect", restarts),
        (NET, "SIGKILL under load, reconnect", restarts),
        (NET, "its peer goes and comes back", devices),
        (NET, "its tap is turned off and on", devices),
    ];
    let cell = |(peer, tried, vm): (&'static str, &'static str, Vm)| Cell {
        table: FRONT_ENDS,
        peer: format!("QEMU {version}, {peer}"),
        tried,
        needs: NEEDS,
        run: Box::new(move || vm().result(peer, tried)),
    };
    tried.map(cell).into()
}

fn devices() -> &'static Steps {
    static STEPS: OnceLock<Steps> = OnceLock::new();
    STEPS.get_or_init(|| {
        let mut steps = Steps::default();
        match Machine::start(1) {
            Ok(machine) => machine.try_devices(&mut steps),
            Err(error) => steps.broke(format!("{error:#}")),
        }
        steps
    })
}

/// QEMU does not survive it.
fn entropy_replug() -> &'static Steps {
    static STEPS: OnceLock<Steps> = OnceLock::new();
    STEPS.get_or_init(|| {
        let mut steps = Steps::default();
        match Machine::start(3) {
            Ok(mut machine) => {
                steps.step(RNG, "unplug and replug", || machine.entropy_replugged());
            }
            Err(error) => steps.broke(format!("{error:#}")),
        }
        steps
    })
}

fn restarts() -> &'static Steps {
    static STEPS: OnceLock<Steps> = OnceLock::new();
    STEPS.get_or_init(|| {
        let mut steps = Steps::default();
        match Machine::start(2) {
            Ok(machine) => machine.try_restarts(&mut steps),
            Err(error) => steps.broke(format!("{error:#}")),
        }
        steps
    })
}

/// One of our back-ends, which can be started again with the same words.
struct BackEnd {
    name: &'static str,
    words: Vec<String>,
    socket: PathBuf,
    program: Program,
}

impl BackEnd {
    fn start(name: &'static str, directory: &Path, id: &str, words: &[String]) -> Result<Self> {
        let socket = directory.join(format!("{id}.sock"));
        let mut all = vec![format!("--socket-path={}", socket.display())];
        all.extend_from_slice(words);
        Ok(Self {
            name,
            program: Self::run(name, &all, &socket)?,
            words: all,
            socket,
        })
    }

    fn run(name: &str, words: &[String], socket: &Path) -> Result<Program> {
        let mut command = Command::new(Products::get()?.program(name));
        program::serving(command.args(words), socket)
    }

    /// Ends it by a signal, and starts another.
    fn restart(&mut self, signal: Signal) -> Result<()> {
        self.program.end(signal)?;
        let said = self.program.said();
        ensure!(!said.contains("cut "), "{:?} said:\n{said}", self.words);
        self.program = Self::run(self.name, &self.words, &self.socket)?;
        Ok(())
    }
}

/// A QEMU with its guest, our back-ends, and the host's end of the network.
struct Machine {
    qemu: Qemu,
    guest: Guest,
    /// A disk with one queue and one with four, a card with one pair of
    /// queues and one with four, a source of entropy, and a card with a peer.
    back_ends: [BackEnd; 6],
    /// Of the first card and of the second.
    taps: [Tap; 2],
    /// Where the last card connects to its peer.
    peers: UnixListener,
    directory: TempDir,
}

/// Ids of the devices, and their disks or taps.
const ONE: usize = 0;
const FOUR: usize = 1;
const CARD: usize = 2;
const CARDS: usize = 3;
const ENTROPY: usize = 4;
const STREAM: usize = 5;
const IDS: [&str; 6] = ["one", "four", "card", "cards", "entropy", "stream"];
const QUEUES: [u16; 6] = [1, 4, 1, 4, 1, 1];
/// The address of the last card, and that of its peer.
const STREAM_ADDRESSES: [&str; 2] = ["10.78.0.2", "10.78.0.1"];

impl Machine {
    fn start(vm: u8) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let at = directory.path();
        let disk = |id: &str, queues: u16| {
            let image = at.join(format!("{id}.img"));
            File::create(&image)?.set_len(SIZE)?;
            let words = [
                format!("--blk-file={}", image.display()),
                format!("--serial={id}"),
                format!("--num-queues={queues}"),
            ];
            BackEnd::start(BLK, at, id, &words)
        };
        let plugged = |id: &str, pairs: u16| {
            let tap = Tap::new(10 * vm + pairs as u8, pairs)?;
            let words = [
                format!("--tap={}", tap.name()),
                format!("--num-queues={pairs}"),
            ];
            anyhow::Ok((BackEnd::start(NET, at, id, &words)?, tap))
        };
        let (card, first) = plugged(IDS[CARD], QUEUES[CARD])?;
        let (cards, second) = plugged(IDS[CARDS], QUEUES[CARDS])?;
        let entropy = BackEnd::start(RNG, at, IDS[ENTROPY], &[])?;
        let (one, four) = (disk(IDS[ONE], 1)?, disk(IDS[FOUR], 4)?);
        let peer = at.join("peer");
        let peers = UnixListener::bind(&peer)?;
        let words = [format!("--peer={}", peer.display())];
        let stream = BackEnd::start(NET, at, IDS[STREAM], &words)?;
        let back_ends = [one, four, card, cards, entropy, stream];
        let mut qemu = Qemu::start(at, &arguments(at)?)?;
        for number in 0..IDS.len() {
            plug(&mut qemu, number)?;
        }
        qemu.execute("cont", json!({}))?;
        let mut guest = Guest::connect(at)?;
        let booted = guest.booted();
        booted.with_context(|| format!("QEMU said:\n{}", qemu.said()))?;
        Ok(Self {
            qemu,
            guest,
            back_ends,
            taps: [first, second],
            peers,
            directory,
        })
    }

    fn image(&self, number: usize) -> PathBuf {
        self.directory.path().join(format!("{}.img", IDS[number]))
    }

    fn try_devices(mut self, steps: &mut Steps) {
        steps.step(BLK, "data compared", || self.disk_verified(ONE));
        steps.step(BLK, "4 queues", || self.disk_verified(FOUR));
        steps.step(BLK, "discard", || self.without_the_middle("", ONE));
        steps.step(BLK, "write zeroes", || self.without_the_middle("-z", FOUR));
        steps.step(NET, "data compared", || self.card_verified(CARD));
        steps.step(NET, "4 queues", || self.card_verified(CARDS));
        steps.step(NET, "its peer goes and comes back", || self.peers_met());
        steps.step(NET, "its tap is turned off and on", || self.link_followed());
        steps.step(RNG, "data compared", || self.entropy_verified());
        steps.step(BLK, "unplug and replug", || self.replugged(FOUR));
        steps.step(NET, "unplug and replug", || self.replugged(CARD));
        steps.step(BLK, "guest reboot", || {
            self.reboot()?;
            self.disk_verified(ONE)?;
            self.disk_verified(FOUR)
        });
        steps.step(NET, "guest reboot", || self.card_verified(CARD));
        steps.step(RNG, "guest reboot", || {
            self.entropy_verified()?;
            self.finish()
        });
    }

    fn try_restarts(mut self, steps: &mut Steps) {
        steps.step(BLK, "SIGTERM under load, reconnect", || {
            self.disk_restarted(ONE, Signal::SIGTERM)?;
            self.disk_restarted(FOUR, Signal::SIGTERM)
        });
        steps.step(BLK, "SIGKILL under load, reconnect", || {
            self.disk_restarted(ONE, Signal::SIGKILL)?;
            self.disk_restarted(FOUR, Signal::SIGKILL)
        });
        steps.step(NET, "SIGKILL under load, reconnect", || {
            self.card_restarted(CARD)?;
            self.finish()
        });
    }

    /// Everybody ends in peace.
    fn finish(&mut self) -> Result<Outcome> {
        self.qemu.quit()?;
        for back_end in &mut self.back_ends {
            let status = back_end.program.end(Signal::SIGTERM)?;
            let said = back_end.program.said();
            ensure!(
                status.success(),
                "{status}: {:?} said:\n{said}",
                back_end.words
            );
            ensure!(!said.contains("cut "), "{:?} said:\n{said}", back_end.words);
        }
        Ok(Outcome::Passed)
    }

    /// The name of a disk in the guest.
    fn disk(&mut self, number: usize) -> Result<String> {
        let id = IDS[number];
        eventually(&format!("the guest has the disk {id}"), || {
            let line = format!(
                "for d in /sys/block/vd*; do [ \"$(cat $d/serial)\" != {id} ] || basename $d; done"
            );
            let name = self.guest.run(&line)?;
            Ok((!name.is_empty()).then_some(name))
        })
    }

    /// fio verifies what it writes, and the host finds in the image what the
    /// guest reads.
    fn disk_verified(&mut self, number: usize) -> Result<Outcome> {
        let name = self.disk(number)?;
        let queues = QUEUES[number];
        let found = self
            .guest
            .run(&format!("ls /sys/block/{name}/mq | wc -l"))?;
        ensure!(found == queues.to_string(), "the disk has {found} queues");
        self.guest.run(&fio(&name, queues))?;
        self.compare(number, &name)
    }

    fn compare(&mut self, number: usize, name: &str) -> Result<Outcome> {
        let line = format!("sync; dd if=/dev/{name} iflag=direct bs=1M 2>/dev/null | sha256sum");
        let seen = self.guest.run(&line)?;
        let seen = seen.split_whitespace().next().context("no sum")?;
        let found = sha256(&self.image(number))?;
        ensure!(
            seen == found,
            "the guest reads {seen}, the image is {found}"
        );
        Ok(Outcome::Passed)
    }

    /// A quarter is discarded, which gives it back, or zeroed: it reads as
    /// zeroes, and nothing else has changed.
    fn without_the_middle(&mut self, how: &str, number: usize) -> Result<Outcome> {
        let name = self.disk(number)?;
        self.guest.run(&format!(
            "dd if=/dev/urandom of=/dev/{name} oflag=direct bs=1M count=16 conv=fsync 2>/dev/null"
        ))?;
        let image = self.image(number);
        let before = fs::read(&image)?;
        let blocks = File::open(&image)?.metadata()?.blocks();
        self.guest.run(&format!(
            "/usr/sbin/blkdiscard {how} -o 4M -l 8M /dev/{name}"
        ))?;
        let mut expected = before;
        expected[4 << 20..12 << 20].fill(0);
        ensure!(
            fs::read(&image)? == expected,
            "not the middle alone is zero"
        );
        let file = File::open(&image)?;
        file.sync_all()?;
        let left = file.metadata()?.blocks();
        // Linux asks for zeroes that stay allocated.
        let given_back = left < blocks;
        ensure!(
            given_back == how.is_empty(),
            "{blocks} blocks before, {left} after"
        );
        self.compare(number, &name)
    }

    fn tap(&self, number: usize) -> &Tap {
        &self.taps[number - CARD]
    }

    /// The name of a card in the guest, with its address given to it.
    fn card(&mut self, number: usize) -> Result<String> {
        let line = format!("grep -l :0{number}$ /sys/class/net/*/address | cut -d / -f 5");
        let name = eventually("the guest has the card", || {
            let name = self.guest.run(&line)?;
            Ok((!name.is_empty()).then_some(name))
        })?;
        let address = match number {
            STREAM => STREAM_ADDRESSES[0].to_owned(),
            _ => self.tap(number).guest(),
        };
        self.guest.run(&format!(
            "ip addr replace {address}/24 dev {name}; ip link set {name} up"
        ))?;
        Ok(name)
    }

    /// Data goes through TCP connections that the guest opens, one for each
    /// pair of queues at the same time, and through one that the host opens;
    /// forth and back each.
    fn card_verified(&mut self, number: usize) -> Result<Outcome> {
        let queues = QUEUES[number];
        let name = self.card(number)?;
        let found = self.guest.run(&format!(
            "ethtool -l {name} | awk '/Combined/ {{ n = $2 }} END {{ print n }}'"
        ))?;
        ensure!(found == queues.to_string(), "the card has {found} pairs");

        let tap = &self.taps[number - CARD];
        let echo = Echo::start(tap)?;
        self.guest
            .run("[ -e /tmp/data ] || dd if=/dev/urandom of=/tmp/data bs=1M count=1 2>/dev/null")?;
        self.guest.start("many", &format!(
            "for i in $(seq {queues}); do (nc {} {} </tmp/data >/tmp/back$i && cmp /tmp/data /tmp/back$i) & pids=\"$pids $!\"; done; \
             for pid in $pids; do wait $pid || exit 1; done; true",
            tap.host(), echo.port()
        ))?;
        self.guest.finished("many")?;

        self.guest.start("server", "nc -l -p 7000 -e cat")?;
        let bytes: Vec<_> = (0..1 << 20).map(|at: u32| (at ^ at >> 11) as u8).collect();
        network::compared(tap, 7000, &bytes)?;
        self.guest.finished("server")?;
        Ok(Outcome::Passed)
    }

    /// Each time its peer has gone, the card finds the next one at the same path.
    fn peers_met(&mut self) -> Result<Outcome> {
        self.card(STREAM)?;
        let path = self.directory.path().join("peer");
        for _ in 0..3 {
            let peer = Peer::meet(&self.peers)?;
            // What is sent before the card has got the peer is lost.
            let ping = format!("ping -c 1 -W 5 {} && echo yes", STREAM_ADDRESSES[1]);
            eventually("the peer answers the guest", || {
                Ok(self
                    .guest
                    .run(&format!("{ping} || true"))?
                    .ends_with("yes")
                    .then_some(()))
            })?;
            fs::remove_file(&path)?;
            self.peers = UnixListener::bind(&path)?;
            drop(peer);
        }
        let peer = Peer::meet(&self.peers)?;
        drop(peer);
        Ok(Outcome::Passed)
    }

    /// The back-end follows its tap's link, whether or not QEMU lets the guest see it.
    fn link_followed(&mut self) -> Result<Outcome> {
        let carrier = format!("cat /sys/class/net/{}/carrier", self.card(CARD)?);
        // Of a card QEMU has known so far what it tells the guest by itself.
        let asks = !self.qemu.said().contains("F_CONFIG but QEMU does not");
        for (link, seen) in [("down", "0"), ("up", "1")] {
            self.tap(CARD).turn(link)?;
            let words = format!("the guest sees its link {link}");
            self.back_ends[CARD].program.says(&[&words])?;
            let expected = if asks { seen } else { "1" };
            eventually("the guest sees the link", || {
                Ok((self.guest.run(&carrier)? == expected).then_some(()))
            })?;
        }
        self.card_verified(CARD)?;
        Ok(match asks {
            true => Outcome::Passed,
            false => Outcome::Unsupported(
                "it asks no card's back-end for its link, which the guest sees up".into(),
            ),
        })
    }

    /// The device is the guest's source, and what comes cannot be made any
    /// smaller.
    fn entropy_verified(&mut self) -> Result<Outcome> {
        let rng = "/sys/class/misc/hw_random";
        eventually("the guest has the device", || {
            let line = format!("cat {rng}/rng_available {rng}/rng_current");
            let found = self.guest.run(&line)?;
            let all = found
                .lines()
                .all(|line| line.trim().starts_with("virtio_rng"));
            Ok((all && found.lines().count() == 2).then_some(()))
        })?;
        let size: u64 = self.guest.run(&entropy_read(64))?.parse()?;
        ensure!(
            size >= 64 << 10,
            "64 KiB of it can be packed into {size} bytes"
        );
        Ok(Outcome::Passed)
    }

    /// The device is taken out while it is in use, and put back: twice.
    /// QEMU 7.2 says SET_OWNER once more over the same connection; the stock daemon
    /// ends the session (tests/contract/tests/stock_daemon.rs), and QEMU, which
    /// waits for an answer then, sets an error that is set already.
    fn entropy_replugged(&mut self) -> Result<Outcome> {
        self.unplug(ENTROPY)?;
        let Err(error) = plug(&mut self.qemu, ENTROPY) else {
            return self.entropy_verified();
        };
        let aborted = self.qemu.said();
        ensure!(aborted.contains("Assertion `*errp == NULL'"), error);
        let program = &self.back_ends[ENTROPY].program;
        eventually("the daemon says why it ended the session", || {
            Ok(program.said().contains("already claimed").then_some(()))
        })
        .with_context(|| program.said())?;
        let shown = "it claims the connection twice, which the stock daemon refuses, and aborts";
        Ok(Outcome::Unsupported(shown.into()))
    }

    fn unplug(&mut self, number: usize) -> Result<()> {
        self.qemu
            .execute("device_del", json!({"id": IDS[number]}))?;
        while self.qemu.event("DEVICE_DELETED")?["data"]["device"] != IDS[number] {}
        Ok(())
    }

    fn replugged(&mut self, number: usize) -> Result<Outcome> {
        for _ in 0..2 {
            self.unplug(number)?;
            plug(&mut self.qemu, number)?;
            match number {
                ONE | FOUR => self.disk_verified(number)?,
                _ => self.card_verified(number)?,
            };
        }
        Ok(Outcome::Passed)
    }

    /// The guest starts again; the back-ends go on.
    fn reboot(&mut self) -> Result<()> {
        self.guest.tell("reboot -f")?;
        self.guest.booted()
    }

    /// The back-end ends while fio verifies.
    fn disk_restarted(&mut self, number: usize, signal: Signal) -> Result<Outcome> {
        let name = self.disk(number)?;
        self.load(&fio(&name, QUEUES[number]))?;
        let counter = format!("awk '{{ print $1 + $5 }}' /sys/block/{name}/stat");
        self.restarted(number, signal, &counter)?;
        self.compare(number, &name)
    }

    /// While the guest compares what comes back over TCP, the back-end is
    /// killed three times and started again.
    fn card_restarted(&mut self, number: usize) -> Result<Outcome> {
        let name = self.card(number)?;
        let tap = &self.taps[number - CARD];
        let echo = Echo::start(tap)?;
        self.guest
            .run("dd if=/dev/urandom of=/tmp/data bs=1M count=1 2>/dev/null")?;
        self.load(&format!(
            "(nc {} {} </tmp/data >/tmp/back && cmp /tmp/data /tmp/back)",
            tap.host(),
            echo.port()
        ))?;
        self.restarted(
            number,
            Signal::SIGKILL,
            &format!("cat /sys/class/net/{name}/statistics/rx_packets"),
        )?;
        Ok(Outcome::Passed)
    }

    /// Does this over and over, until [`Self::restarted`] has had enough.
    fn load(&mut self, line: &str) -> Result<()> {
        self.guest.run("rm -f /tmp/enough")?;
        self.guest.start(
            "load",
            &format!("while [ ! -e /tmp/enough ]; do {line} || exit 1; done"),
        )
    }

    /// The back-end ends three times and is started again; each time the
    /// device has been used since, by what `counter` prints in the guest.
    fn restarted(&mut self, number: usize, signal: Signal, counter: &str) -> Result<()> {
        for _ in 0..3 {
            self.progress(counter)?;
            self.back_ends[number].restart(signal)?;
        }
        self.progress(counter)?;
        self.guest.run("touch /tmp/enough")?;
        self.guest.finished("load")?;
        Ok(())
    }

    /// Waits until a counter has risen by another 50.
    fn progress(&mut self, counter: &str) -> Result<()> {
        let start: u64 = self.guest.run(counter)?.parse()?;
        eventually("the device is used", || {
            let now: u64 = self.guest.run(counter)?.parse()?;
            // A load that has failed makes no more.
            self.guest.status("load")?;
            Ok((now >= start + 50).then_some(()))
        })
    }
}

/// QEMU's arguments; the devices are plugged in before the guest starts.
fn arguments(directory: &Path) -> Result<Vec<String>> {
    let guest = PathBuf::from(std::env::var_os("PEERS_GUEST").context("PEERS_GUEST")?);
    let mut words: Vec<String> = [
        "-S -accel tcg,thread=multi -cpu max -m 384 -smp 4 -nodefaults -display none -nic none",
        "-M q35,memory-backend=memory -object memory-backend-memfd,id=memory,size=384M,share=on",
    ]
    .iter()
    .flat_map(|line| line.split(' '))
    .map(str::to_owned)
    .collect();
    let file = |name: &str| guest.join(name).display().to_string();
    words.extend([
        "-kernel".into(),
        file("vmlinuz"),
        "-initrd".into(),
        file("initrd.img"),
        "-append".into(),
        "console=ttyS0 root=/dev/vda panic=-1 nokaslr mitigations=off".into(),
        "-drive".into(),
        format!(
            "if=none,id=root,format=raw,snapshot=on,file={}",
            file("root.img")
        ),
        "-device".into(),
        "virtio-blk-pci,drive=root,addr=1".into(),
    ]);
    words.extend(Guest::arguments(directory));
    for (number, id) in IDS.iter().enumerate() {
        let socket = directory.join(format!("{id}.sock"));
        words.extend([
            "-chardev".into(),
            format!("socket,id=to-{id},path={},reconnect=1", socket.display()),
            "-device".into(),
            format!(
                "pcie-root-port,id=port-{id},chassis={},addr={}",
                number + 1,
                number + 2
            ),
        ]);
    }
    for card in [CARD, CARDS, STREAM] {
        let (id, queues) = (IDS[card], QUEUES[card]);
        words.extend([
            "-netdev".into(),
            format!("vhost-user,id=net-{id},chardev=to-{id},queues={queues}"),
        ]);
    }
    Ok(words)
}

fn plug(qemu: &mut Qemu, number: usize) -> Result<()> {
    let (id, queues) = (IDS[number], QUEUES[number]);
    let bus = format!("port-{id}");
    let device = match number {
        ONE | FOUR => json!({
            "driver": "vhost-user-blk-pci", "id": id, "bus": bus, "chardev": format!("to-{id}"),
            "num-queues": queues,
        }),
        ENTROPY => json!({
            "driver": "vhost-user-rng-pci", "id": id, "bus": bus, "chardev": format!("to-{id}"),
        }),
        _ => json!({
            "driver": "virtio-net-pci", "id": id, "bus": bus, "netdev": format!("net-{id}"),
            "mac": format!("02:00:00:00:00:0{number}"), "mq": queues > 1,
            // Without MSI-X: QEMU 7.2 crashes in emulation when a vhost-user card's vectors are
            // unmasked, since it asks KVM, which is not there, for an irqfd.
            "vectors": 0,
        }),
    };
    qemu.execute("device_add", device)?;
    Ok(())
}

/// Random writes by some jobs, each block with its checksum, all verified.
fn fio(name: &str, jobs: u16) -> String {
    format!(
        "fio --name=verify --filename=/dev/{name} --size=2M --offset_increment=2M --numjobs={jobs} \
         --rw=randwrite --bsrange=4k-32k --ioengine=io_uring --iodepth=16 --direct=1 --thread \
         --verify=crc32c --verify_fatal=1 --do_verify=1 --group_reporting --randrepeat=0 --fsync=32 \
         --cpus_allowed=0-3 --cpus_allowed_policy=split"
    )
}

/// Prints the packed size of so many KiB of entropy.
fn entropy_read(kib: u32) -> String {
    format!("dd if=/dev/hwrng bs=1k count={kib} iflag=fullblock 2>/dev/null | gzip | wc -c")
}

fn sha256(file: &Path) -> Result<String> {
    let output = Command::new("sha256sum").arg(file).output()?;
    let text = String::from_utf8(output.stdout)?;
    Ok(text.split_whitespace().next().context("no sum")?.to_owned())
}
