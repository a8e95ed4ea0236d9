//! A tap that cannot be had is named, with what to do, and nothing is started.

use std::fs;

use anyhow::{Context, Result};
use outboard_e2e::network::{ip, tap};
use outboard_e2e::products::Products;
use outboard_e2e::vm::Run;

use super::{NET, in_network};
use crate::wrong_use::refused;
use crate::{Need, Test};

/// To have rights and lose them.
const ROOT: &[Need] = &[
    Need::Kvm,
    Need::Network,
    Need::Root,
    Need::Program("setpriv"),
];

pub fn tests() -> Vec<Test> {
    vec![
        in_network("a tap that does not exist is named", NET, || {
            let words = "tap nowhere0 does not exist; `ip tuntap add dev nowhere0 mode tap user";
            refused(card("tap=nowhere0")?, 1, words)?;
            let words = "`ip tuntap add dev nowhere0 mode tap multi_queue user $USER` makes it";
            refused(card("tap=nowhere0,queues=2")?, 1, words)?;
            refused(card("tap=much-too-long-a-name")?, 1, "give 1 to 15 letters")
        }),
        in_network("a tap that is busy is named", NET, busy),
        in_network("a tap without multi-queue is named", NET, || {
            tap("tap0", "")?;
            let words = "tap tap0 has one queue only; make it with `multi_queue`";
            refused(card("tap=tap0,queues=4")?, 1, words)
        }),
        in_network("what is no tap is named", NET, || {
            ip("tuntap add dev tun0 mode tun")?;
            ip("link add br0 type bridge")?;
            refused(card("tap=tun0")?, 1, "tun0 is not a tap")?;
            refused(card("tap=br0")?, 1, "br0 is not a tap")?;
            refused(card("tap=lo,queues=2")?, 1, "lo is not a tap")
        }),
        in_network("a tap of somebody else's is named", ROOT, || {
            tap("tap0", "user 12345")?;
            let run = card("tap=tap0")?.under(&["setpriv", "--bounding-set=-net_admin"]);
            let words = "tap tap0 may not be used: EPERM: Operation not permitted; run as root";
            refused(run, 1, words)
        }),
        in_network("no permission for taps at all is said", ROOT, no_permission),
        in_network("no /dev/net/tun is said", ROOT, || {
            tap("tap0", "")?;
            let script = "mount -t tmpfs none /dev/net && exec \"$@\"";
            let run = card("tap=tap0")?.under(&["unshare", "--mount", "sh", "-c", script, "sh"]);
            refused(
                run,
                1,
                "/dev/net/tun: No such file or directory (os error 2); load the module",
            )
        }),
        in_network("a peer that is not there is named", NET, || {
            let words = "no peer listens at /nowhere/peer; start it, give it time with `wait=10s`";
            refused(card("peer=/nowhere/peer")?, 1, words)?;
            refused(
                card("peer=/nowhere/peer,listen")?,
                1,
                "cannot listen at /nowhere/peer",
            )
        }),
    ]
}

fn card(net: &str) -> Result<Run> {
    Ok(Run::guest("scenario=net-identify")?.with("--net", net))
}

fn busy() -> Result<()> {
    tap("tap0", "")?;
    let idle = Run::guest("scenario=idle")?.with("--net", "tap=tap0");
    let mut first = idle.start()?;
    first.console_line("OUTBOARD idle")?;
    let words = "tap tap0 is busy: another process uses it; end that one, or name another tap";
    refused(card("tap=tap0")?, 1, words)?;
    // The first lives.
    first.signal(nix::sys::signal::Signal::SIGTERM)?;
    first.wait()?.with_code(0)?;
    first.check_nothing_is_left()
}

/// The programs may lie where only root can reach them; so copies are started.
fn no_permission() -> Result<()> {
    tap("tap0", "user 65534")?;
    let folder = tempfile::tempdir_in("/tmp")?;
    let mode: fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(folder.path(), mode)?;
    let products = Products::get()?;
    let copy = |from: std::path::PathBuf| {
        let to = folder.path().join(from.file_name().context("a name")?);
        fs::copy(from, &to)?;
        Ok::<_, anyhow::Error>(to)
    };
    let program = copy(products.program("outboard"))?;
    copy(products.program("outboard-net"))?;
    let kernel = copy(products.guest("guest-pvh"))?;
    // A /dev/kvm for everyone, and a /dev/net/tun for root.
    let script = format!(
        "mount -t tmpfs none /mnt && cp -a /dev/kvm /dev/net/tun /mnt && chmod 666 /mnt/kvm && \
         chmod 600 /mnt/tun && mount --bind /mnt/kvm /dev/kvm && mount --bind /mnt/tun /dev/net/tun \
         && exec setpriv --reuid=65534 --clear-groups {program:?} run --kernel {kernel:?} \"$@\""
    );
    let run = Run::program("unshare")
        .switch("--mount")
        .with("sh", "-c")
        .switch(&script)
        .with("sh", "--net")
        .switch("tap=tap0");
    let words = "/dev/net/tun cannot be opened: Permission denied (os error 13); run as root";
    refused(run, 1, words)
}
