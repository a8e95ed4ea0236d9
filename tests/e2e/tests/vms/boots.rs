//! The bundled guest boots in every shape and verifies its disk.

use anyhow::{Result, bail, ensure};
use outboard_e2e::image::{Content, Image};
use outboard_e2e::products::PACKAGINGS;
use outboard_e2e::vm::{Ended, Run};

use crate::{KVM, Need, Test, test};

/// The guest's seed: nothing is special about it.
const SEED: u64 = 7;
const MIB: u64 = 1 << 20;

/// One shape of a VM.
#[derive(Clone, Copy)]
struct Shape {
    cpus: u8,
    queues: u8,
    memory: &'static str,
    doorbell: &'static str,
    packaging: &'static str,
}

const fn shape(
    cpus: u8,
    queues: u8,
    memory: &'static str,
    doorbell: &'static str,
    packaging: usize,
) -> Shape {
    Shape {
        cpus,
        queues,
        memory,
        doorbell,
        packaging: PACKAGINGS[packaging],
    }
}

/// Every pair of values comes up.
const SHAPES: [Shape; 9] = [
    shape(1, 1, "256M", "mmio", 0),
    shape(1, 4, "5G", "pio", 1),
    shape(1, 4, "256M", "mmio", 2),
    shape(2, 1, "5G", "pio", 0),
    shape(2, 4, "256M", "mmio", 1),
    shape(2, 1, "5G", "pio", 2),
    shape(4, 4, "5G", "mmio", 0),
    shape(4, 1, "256M", "mmio", 1),
    shape(4, 4, "256M", "pio", 2),
];

pub fn tests() -> Vec<Test> {
    let mut tests: Vec<_> = SHAPES
        .into_iter()
        .map(|shape| {
            let name = format!(
                "{} verifies its disk with {} cpus {} queues {} and {} doorbells",
                shape.packaging, shape.cpus, shape.queues, shape.memory, shape.doorbell
            );
            let needs: &[Need] = match shape.memory {
                "5G" => &[Need::Kvm, Need::Memory(6)],
                _ => KVM,
            };
            test(name, needs, move || verifies(shape))
        })
        .collect();
    tests.extend([
        test(
            "a vcpu that rings by itself after an exit serves as well",
            KVM,
            || rings("exit", "pio"),
        ),
        test(
            "a worker that a vcpu wakes to ring serves as well",
            KVM,
            || rings("worker", "mmio"),
        ),
        test(
            "one changed bit on the image is found out from the host",
            KVM,
            corruption_is_found_on_the_image,
        ),
        test(
            "the guest sees the devices that were asked for",
            KVM,
            the_guest_sees_its_devices,
        ),
        test(
            "a device survives what no driver should do to its registers",
            KVM,
            || robust("registers"),
        ),
        test(
            "a device survives what no driver should put on its rings",
            KVM,
            || robust("rings"),
        ),
        test(
            "devices are reset and taken up again",
            KVM,
            devices_are_reset,
        ),
    ]);
    tests
}

/// Runs `scenario=verify` with a disk of 64 MiB.
fn verify(image: &Image, shape: Shape, disk: &str, more: &str) -> Result<Ended> {
    let cmdline = format!(
        "scenario=verify requests=10000 depth=32 queues={} seed={SEED} {more}",
        shape.queues
    );
    Run::packed(shape.packaging, &cmdline)?
        .with("--cpus", shape.cpus.to_string())
        .with("--memory", shape.memory)
        .with("--doorbell", shape.doorbell)
        .with(
            "--disk",
            format!("{},queues={}{disk}", image.option(), shape.queues),
        )
        .to_the_end()?
        .with_code(0)
}

/// As with ioeventfd, but that every kick exits.
fn rings(ring: &str, doorbell: &str) -> Result<()> {
    let image = Image::new(64 * MIB)?;
    let cmdline = format!("scenario=verify requests=2000 depth=8 queues=2 seed={SEED}");
    let ended = Run::guest(&cmdline)?
        .with("--cpus", "2")
        .with("--kick-path", ring)
        .with("--doorbell", doorbell)
        .with("--disk", format!("{},queues=2", image.option()))
        .to_the_end()?
        .with_code(0)?;
    let result = ended.result("verify")?.passed()?;
    ensure!(result.number("requests")? >= 2000, "{result:?}");
    Ok(())
}

/// What the guest says it has written.
fn written(ended: &Ended) -> Result<Content> {
    let result = ended.result("verify")?.passed()?;
    ensure!(result.number("requests")? >= 10_000, "{result:?}");
    Ok(Content {
        sectors: result.number("sectors")?,
        digest: result.number("digest")?,
    })
}

fn verifies(shape: Shape) -> Result<()> {
    let image = Image::new(64 * MIB)?;
    let ended = verify(&image, shape, "", "")?;
    let result = ended.result("verify")?;
    ensure!(
        result.number("queues")? == u64::from(shape.queues),
        "{result:?}"
    );
    let said = written(&ended)?;
    let found = image.check(SEED)?;
    ensure!(
        found == said,
        "on the image {found:?}, by the guest {said:?}"
    );
    ensure!(said.sectors > 1000, "{said:?}");
    image.wait_until_free()
}

fn corruption_is_found_on_the_image() -> Result<()> {
    let image = Image::new(64 * MIB)?;
    let said = written(&verify(&image, SHAPES[0], "", "")?)?;
    ensure!(image.check(SEED)? == said);
    image.corrupt()?;
    match image.check(SEED) {
        Err(_) => Ok(()),
        Ok(found) => bail!("not found: {found:?}"),
    }
}

fn the_guest_sees_its_devices() -> Result<()> {
    let images = [Image::new(MIB)?, Image::new(2 * MIB)?];
    let ended = Run::guest("scenario=identify")?
        .with("--cpus", "2")
        .with(
            "--disk",
            format!("{},serial=first,queue-size=64", images[0].option()),
        )
        .with(
            "--disk",
            format!("{},readonly,queues=3", images[1].option()),
        )
        .to_the_end()?
        .with_code(0)?;
    let result = ended.result("identify")?.passed()?;
    ensure!(result.number("devices")? == 2 && result.number("processors")? == 2);
    let disks: Vec<_> = ended
        .console
        .lines()
        .filter(|line| line.starts_with("disk slot="))
        .collect();
    let says = |disk: usize, word: &str| disks.get(disk).is_some_and(|line| line.contains(word));
    ensure!(says(0, "slot=1 ") && says(0, "capacity=2048 "), "{ended}");
    ensure!(
        says(0, "serial=first") && says(0, " ro=0 ") && says(0, " queues=2 "),
        "{ended}"
    );
    ensure!(says(1, "slot=2 ") && says(1, "capacity=4096 "), "{ended}");
    ensure!(says(1, " ro=1 ") && says(1, " queues=3 "), "{ended}");
    ensure!(ended.console.contains("sizes=64,64 "), "{ended}");
    Ok(())
}

fn robust(scenario: &str) -> Result<()> {
    let image = Image::new(64 * MIB)?;
    let ended = Run::guest(&format!("scenario={scenario}"))?
        .with("--cpus", "2")
        .with("--disk", image.option())
        .to_the_end()?
        .with_code(0)?;
    ended.result(scenario)?.passed()?;
    Ok(())
}

fn devices_are_reset() -> Result<()> {
    let image = Image::new(64 * MIB)?;
    let shape = SHAPES[4];
    let said = written(&verify(
        &image,
        shape,
        "",
        "reinit=3 discard=1 write_zeroes=1",
    )?)?;
    ensure!(image.check(SEED)? == said);
    Ok(())
}
