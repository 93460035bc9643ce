//! What a guest is: the description from the configuration, and the command line it becomes.
//!
//! The configuration has a type of its own (`config/qemu.rs`), as it has for each backend: neither
//! layer imports the other. `cli/run/guests.rs` makes this one of it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The two servers as guests.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct QemuSetup {
    /// QEMU.
    pub program: String,
    /// Kinds of acceleration, the best first.
    pub accel: Vec<String>,
    /// Memory of a guest.
    pub memory_kib: u64,
    /// Processors of a guest.
    pub cpus: u32,
    /// Kernel image.
    pub kernel: Option<String>,
    /// Its first file system.
    pub initrd: Option<String>,
    /// Its command line.
    pub append: String,
    /// The Ethernet address that both guests have.
    pub mac: String,
    /// More arguments; `{name}` is the guest's own name and `{dir}` the directory.
    pub args: Vec<String>,
    /// Where sockets and logs are; an absolute path.
    pub dir: PathBuf,
    /// Where guests' memory is, if it is files; an absolute path.
    pub memory_dir: Option<PathBuf>,
    /// The gateway's ends of the links.
    pub links: [PathBuf; 2],
    /// The servers' names.
    pub names: [String; 2],
    /// How long the source of a copy may stand still, by QEMU's own estimate.
    pub downtime_ms: u64,
    /// A copy that takes longer is given up.
    pub timeout_ms: u64,
    /// As whom guests run: user and group; as the gateway's helper if none is named.
    pub run_as: Option<(u32, u32)>,
}

/// One guest: which server it is (0 or 1), and which one of those that have been it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Which {
    /// The server.
    pub leg: usize,
    /// Its generation: each guest has another one.
    pub generation: u32,
}

impl QemuSetup {
    /// A guest's own name.
    pub fn name(&self, which: Which) -> String {
        format!("{}-{}", self.names[which.leg], which.generation)
    }

    /// A file of a guest's own.
    pub fn file(&self, which: Which, kind: &str) -> PathBuf {
        self.dir.join(format!("{}.{kind}", self.name(which)))
    }

    /// Where a guest has its end of its link: what the gateway's end takes for this generation
    /// (`guest_path` in `io/datagram.rs`, which this layer does not import).
    pub fn link(&self, which: Which) -> PathBuf {
        let mut path = self.links[which.leg].clone().into_os_string();
        path.push(format!(".{}", which.generation));
        path.into()
    }

    /// The file that is a guest's memory, if it is one.
    pub fn memory(&self, which: Which) -> Option<PathBuf> {
        self.memory_dir.as_ref().map(|dir| dir.join(format!("{}.memory", self.name(which))))
    }

    /// Where a standby waits for its state.
    pub fn incoming(&self, which: Which) -> String {
        format!("unix:{}", self.file(which, "state").display())
    }

    /// The arguments of a guest's QEMU; a standby waits for the state of another guest.
    pub fn args(&self, which: Which, is_standby: bool) -> Vec<String> {
        let (name, dir) = (self.name(which), self.dir.display().to_string());
        let file = |kind: &str| self.file(which, kind).display().to_string();
        let mut args: Vec<String> = Vec::new();
        let mut add = |words: &[&str]| args.extend(words.iter().map(|&word| word.to_owned()));
        add(&["-name", &name, "-no-user-config", "-nodefaults", "-display", "none"]);
        for accel in &self.accel {
            add(&["-accel", accel]);
        }
        match self.memory(which) {
            None => add(&["-M", "pc"]),
            Some(path) => {
                let (size, path) = (self.memory_kib, path.display());
                let object =
                    format!("memory-backend-file,id=memory,size={size}K,mem-path={path},share=on");
                add(&["-object", &object, "-M", "pc,memory-backend=memory"]);
            }
        }
        add(&["-m", &format!("{}K", self.memory_kib), "-smp", &self.cpus.to_string()]);
        if let Some(kernel) = &self.kernel {
            add(&["-kernel", kernel, "-append", &self.append]);
        }
        if let Some(initrd) = &self.initrd {
            add(&["-initrd", initrd]);
        }
        let (ours, theirs) = (self.link(which), &self.links[which.leg]);
        let netdev = format!(
            "dgram,id=link,local.type=unix,local.path={},remote.type=unix,remote.path={}",
            ours.display(),
            theirs.display()
        );
        let device = format!("virtio-net-pci,netdev=link,mac={},romfile=", self.mac);
        add(&["-netdev", &netdev, "-device", &device]);
        // A guest that panics or wants to restart ends: a server that is gone is what the gateway
        // can deal with.
        add(&["-device", "pvpanic", "-no-reboot"]);
        let chardev = format!("socket,id=qmp,path={},server=on,wait=off", file("qmp"));
        add(&["-chardev", &chardev, "-mon", "chardev=qmp,mode=control"]);
        add(&["-daemonize", "-pidfile", &file("pid")]);
        for arg in &self.args {
            add(&[&arg.replace("{name}", &name).replace("{dir}", &dir)]);
        }
        if is_standby {
            add(&["-S", "-incoming", "defer"]);
        }
        args
    }
}
