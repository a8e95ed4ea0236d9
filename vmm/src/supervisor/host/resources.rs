//! Everything that a VM needs from the host, opened: from here on there are
//! descriptors and no paths.

use std::fs::File;
use std::path::Path;
use std::rc::Rc;

use anyhow::{Result, bail};
use outboard_protocol::launch;

use super::image::{Identity, Images};
use super::lend::{self, Opened};
use super::output::{self, Output};
use super::program::Program;
use super::{descriptors, kernel, kvm, memory};
use crate::supervisor::plan::VmPlan;
use crate::supervisor::say::Logging;

/// What one VM runs on.
#[derive(Debug)]
pub(crate) struct Resources {
    /// How the processes of the VM speak.
    pub(crate) logging: Logging,
    /// What the machine is to be.
    pub(crate) machine: launch::Machine,
    /// The program of the machine process.
    pub(crate) program: Program,
    /// /dev/kvm.
    pub(crate) kvm: File,
    /// The kernel image.
    pub(crate) kernel: File,
    /// The initial RAM disk.
    pub(crate) initrd: Option<File>,
    /// Its devices, in slot order.
    pub(crate) devices: Vec<Rc<Opened>>,
    /// The images that they have.
    pub(crate) images: Images,
}

impl Resources {
    /// Opens everything, and last what the console writes to; starts nothing
    /// and writes nothing.
    ///
    /// # Errors
    /// A message that names the thing and says what to do.
    pub(crate) fn open(vm: VmPlan) -> Result<(Self, Output)> {
        descriptors::check(&vm)?;
        let kvm = kvm::open(Path::new("/dev/kvm"))?;
        let kernel = kernel::open(&vm.kernel)?;
        let initrd = match &vm.initrd {
            Some(path) => Some(kernel::open_initrd(path, vm.machine.memory)?),
            None => None,
        };
        memory::check(vm.machine.memory, vm.machine.hugepages)?;
        let mut images = Images::default();
        let devices = vm
            .devices
            .into_iter()
            .map(|plan| lend::open(plan, &mut images).map(Rc::new))
            .collect::<Result<_>>()?;
        let resources = Self {
            program: Program::this()?,
            logging: vm.logging,
            machine: vm.machine,
            kvm,
            kernel,
            initrd,
            devices,
            images,
        };
        let output = output::open(vm.console)?;
        if let Output::File(console) = &output {
            resources.apart_from(console)?;
        }
        Ok((resources, output))
    }

    /// What the console appends to must be nothing that the guest is made of.
    fn apart_from(&self, console: &File) -> Result<()> {
        let console = Identity::of(&console.metadata()?);
        let is = |file: &File| {
            file.metadata()
                .is_ok_and(|other| Identity::of(&other) == console)
        };
        let other = match self.images.holder(console) {
            Some(id) => format!("the image of {id}"),
            None if is(&self.kernel) => "the kernel".to_owned(),
            None if self.initrd.as_ref().is_some_and(is) => "the initrd".to_owned(),
            None => return Ok(()),
        };
        bail!("the console would be written to {other}; give it a file of its own");
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;
    use outboard_protocol::image_lock;

    use super::super::image;
    use super::*;
    use crate::supervisor::device::net::NetSettings;
    use crate::supervisor::device::plan::{DeviceOption, Usage};
    use crate::supervisor::text::options;
    use crate::supervisor::text::settings::{Console, Settings};

    fn error<T>(result: Result<T>) -> String {
        match result {
            Ok(_) => panic!("should have been refused"),
            Err(error) => format!("{error:#}"),
        }
    }

    #[test]
    fn a_console_is_not_written_to_what_the_guest_is_made_of() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        for name in ["kernel", "initrd", "disk", "log"] {
            fs::write(place(name), [0; 512]).unwrap();
        }
        fs::hard_link(place("disk"), place("link")).unwrap();
        let mut images = Images::default();
        let image = images
            .open("disk0", &place("disk"), Usage::default())
            .unwrap();
        let open = |name: &str| File::open(place(name)).unwrap();
        let vm = VmPlan::new(Settings {
            kernel: Some("k".into()),
            ..Settings::default()
        });
        let resources = Resources {
            program: Program::this().unwrap(),
            machine: vm.unwrap().machine,
            logging: Logging::default(),
            kvm: open("log"),
            kernel: open("kernel"),
            initrd: Some(open("initrd")),
            devices: Vec::new(),
            images,
        };
        let console = |name: &str| resources.apart_from(&open(name));
        for (name, words) in [
            ("disk", "written to the image of disk0; give it"),
            ("link", "written to the image of disk0; give it"),
            ("kernel", "written to the kernel; give it"),
            ("initrd", "written to the initrd; give it"),
        ] {
            let error = error(console(name));
            assert!(error.contains(words), "{error}");
        }
        console("log").unwrap();
        drop(image);
    }

    /// What was attempted, on what: why it failed; what to do about it.
    #[test]
    fn the_cause_of_a_failure_comes_before_the_advice() {
        let folder = tempfile::tempdir().unwrap();
        let plain = folder.path().join("plain");
        fs::write(&plain, "text").unwrap();
        let nowhere = Path::new("/nowhere/it");
        let card = |port: &str| {
            let card: NetSettings = options::read(port).unwrap();
            lend::open(card.plan("net0".into(), 1).unwrap(), &mut Images::default())
        };
        let here = folder.path().display();
        let fifo = folder.path().join("fifo");
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        let mut failures = vec![
            error(kvm::open(nowhere)),
            error(kvm::open(folder.path())),
            error(kernel::open(nowhere)),
            error(kernel::open(&plain.join("below"))),
            error(kernel::open_initrd(nowhere, 1 << 20)),
            error(output::open(Console::File(nowhere.into()))),
            error(output::open(Console::File(folder.path().into()))),
            error(output::open(Console::File(fifo))),
            error(Program::open(nowhere)),
            error(Program::open(Path::new("no-such-program"))),
            error(Program::open(&plain)),
            error(Images::default().open("disk0", &plain.join("below"), Usage::default())),
            error(card("backend=/nowhere/it")),
            error(card("backend=/dev/null,tap=no-such-tap")),
            error(card(&format!("peer={here}/no/folder,listen"))),
            Settings::read(nowhere).unwrap_err(),
            Settings::read(folder.path()).unwrap_err(),
        ];
        let codes = [
            libc::ENOENT,
            libc::EACCES,
            libc::EPERM,
            libc::EROFS,
            libc::EINVAL,
            libc::EBUSY,
            libc::EIO,
        ];
        let of = io::Error::from_raw_os_error;
        failures.extend(codes.map(|code| image::cannot_open(&plain, &of(code)).to_string()));
        let lock = anyhow::Error::new(image_lock::Error::Os(of(libc::ENOLCK)));
        failures.push(format!("{:#}", lock.context("the image a")));
        let mut causes = 0;
        for text in failures {
            let Some((before, after)) = text.split_once(" (os error ") else {
                let of_nix = text.contains(" EACCES: ") || text.contains(" ENOENT: ");
                assert!(!of_nix, "in other words than the rest: {text}");
                continue;
            };
            causes += 1;
            let advice = before.contains([';', '`']);
            assert!(!advice, "the advice is before the cause: {text}");
            let (_, after) = after.split_once(')').unwrap();
            let last = after.is_empty() || after.starts_with("; ");
            assert!(
                last,
                "something is between the cause and the advice: {text}"
            );
            assert!(
                !after.contains("os error"),
                "the cause is told twice: {text}"
            );
        }
        assert!(causes >= 15, "{causes} failures have a cause");
    }
}
