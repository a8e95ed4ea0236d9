//! The command line of `outboard`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use outboard_log::Verbosity;

use crate::ctl::{self, Ctl};
use crate::exit::EXIT_CODES;
use crate::supervisor::say::USUAL;
use crate::supervisor::text::settings::Settings;

/// A thin VMM for Linux/KVM: every virtio device runs in a process of its own.
#[derive(Debug, Parser)]
#[command(name = "outboard", version = outboard_version::VERSION, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a virtual machine until its guest powers off.
    ///
    /// Each disk, network card or other device is served by a process of its
    /// own: one that is started for it, or one that somebody else runs and
    /// that listens on a socket. The kernel is started directly: there is no
    /// firmware, and no boot from a disk.
    #[command(after_long_help = after_help())]
    Run(Box<Run>),
    /// Ask a running VM how it is, or tell it what to do.
    ///
    /// The VM must have been started with `--api PATH`. The same can be had with any
    /// HTTP client, as by `curl --unix-socket PATH http://vm/api/v1/vm`.
    #[command(after_long_help = ctl::after_help())]
    Ctl(Ctl),
    /// The process that `run` starts to hold the guest; not for use by hand.
    #[command(hide = true)]
    Machine,
}

const EXAMPLES: &str = "\
Examples:
  Make an empty disk and boot a kernel with it:
    truncate -s 1G disk.img
    outboard run --kernel vmlinuz --initrd initrd.img --disk path=disk.img

  Two CPUs, 2 GiB, a root file system, and nothing written to the image:
    outboard run --kernel vmlinuz --cpus 2 --memory 2G \\
        --cmdline 'console=ttyS0 root=/dev/vda ro' \\
        --disk path=root.img,readonly

  An entropy device, and with it a guest that has random numbers early:
    outboard run --kernel vmlinuz --initrd initrd.img --rng

  A network card on a tap:
    ip tuntap add dev tap0 mode tap user $USER && ip link set tap0 up
    outboard run --kernel vmlinuz --disk path=root.img --net tap=tap0

  A disk that another program serves; wait until it listens:
    export=vhost-user-blk,id=e,node-name=d,writable=on
    qemu-storage-daemon --blockdev file,node-name=d,filename=disk.img \\
        --export $export,addr.type=unix,addr.path=blk.sock &
    outboard run --kernel vmlinuz --disk socket=blk.sock,wait=10s

  The same from a file:
    printf '%s\\n' 'kernel = \"vmlinuz\"' 'memory = \"2G\"' \\
        '[[disk]]' 'path = \"disk.img\"' > vm.toml
    outboard run --config vm.toml";

const ENVIRONMENT: &str = "\
Environment:
  RUST_LOG
      What all processes of the VM log on standard error, such as `debug` or
      `warn,outboard=debug`, where neither --log-level nor -v is given
  PATH
      Where outboard-blk, outboard-net and outboard-rng are looked for when they
      are not beside `outboard`";

fn after_help() -> String {
    format!("{EXAMPLES}\n\n{EXIT_CODES}\n\n{ENVIRONMENT}")
}

/// `outboard run`.
#[derive(Args, Debug)]
pub struct Run {
    #[command(flatten)]
    settings: Settings,

    /// Read these settings from a TOML file as well
    ///
    /// It has the same names, `[[disk]]`, `[[net]]`, `[[rng]]` and `[[device]]`
    /// once for each. What the command line gives wins; its devices are added. Paths are
    /// relative to the current directory.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(flatten)]
    verbosity: Verbosity,
}

impl Run {
    /// The configuration file, if one is named, and what the command line
    /// says beside it.
    pub fn settings(self) -> (Option<PathBuf>, Settings) {
        let settings = Settings {
            log_level: self.verbosity.asked(USUAL),
            ..self.settings
        };
        (self.config, settings)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_its_help_complete() {
        let mut command = Cli::command();
        command.clone().debug_assert();
        let run = command.find_subcommand_mut("run").unwrap();
        let help = run.render_long_help().to_string();
        assert!(help.contains("Examples:") && help.contains("Exit codes:"));
    }

    /// Every example is split as a shell would and read as a command line.
    #[test]
    fn the_examples_are_accepted() {
        let text = EXAMPLES.replace("\\\n", " ") + "\n" + ctl::EXAMPLES;
        let lines: Vec<_> = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("outboard "))
            .filter_map(|line| line.split(" | ").next())
            .collect();
        assert_eq!(lines.len(), 13);
        for line in lines {
            let mut words = vec!["outboard".to_owned()];
            for (index, part) in line.split('\'').enumerate() {
                match index % 2 {
                    0 => words.extend(part.split_whitespace().map(str::to_owned)),
                    _ => words.push(part.to_owned()),
                }
            }
            Cli::try_parse_from(words).unwrap();
        }
    }
}
