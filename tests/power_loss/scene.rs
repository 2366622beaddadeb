//! A file system of the kernel's on an export, and a database on the file system.
//!
//! ```text
//!   database ─► ext4 ─► loop device ─► nbdfuse ─► recorder ─► forerun serve
//! ```
//!
//! The kernel's flushes pass all the way: the loop device makes them an fsync of its file, and nbdfuse
//! makes that an NBD flush.

use crate::recorder::{Event, Recorder};
use crate::serving::{Image, Serving, client, have, have_root, succeeds};
use nbd::session::Op;
use std::fs::Permissions;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const START: Duration = Duration::from_secs(20);

/// False, with the reason printed, where a file system cannot be recorded.
pub fn can_run() -> bool {
    if !Path::new("/dev/fuse").exists() || !Path::new("/dev/loop-control").exists() {
        eprintln!("skipped: no /dev/fuse or no loop devices");
        return false;
    }
    have(&["nbdfuse", "fusermount3", "mkfs.ext4", "e2fsck", "debugfs"]) && have_root()
}

/// An ext4 that is mounted, and everything under it.
pub struct Scene {
    mib: u64,
    recorder: Recorder,
    fuse: Child,
    serving: Option<Serving>,
    folder: tempfile::TempDir,
    _image: Image,
}

impl Scene {
    /// None, with the reason printed, if the kernel cannot mount it.
    pub fn new(mib: u64, cache: &str) -> Option<Scene> {
        let image = Image::sparse(mib);
        let serving = Serving::start(&image.path, &["--cache", cache]);
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        // PostgreSQL must find its way in as another user.
        std::fs::set_permissions(at, Permissions::from_mode(0o755)).unwrap();
        let recorder = Recorder::start(&serving.uri(), &at.join("recorder.sock"));
        std::fs::create_dir(at.join("fuse")).unwrap();
        std::fs::create_dir(at.join("tree")).unwrap();
        let fuse = Command::new("nbdfuse")
            .arg(at.join("fuse/disk"))
            .arg(recorder.uri())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let scene = Scene {
            mib,
            recorder,
            fuse,
            serving: Some(serving),
            folder,
            _image: image,
        };
        let disk = scene.folder.path().join("fuse/disk");
        let began = Instant::now();
        while !disk.exists() {
            assert!(began.elapsed() < START, "nbdfuse does not mount");
            std::thread::sleep(Duration::from_millis(10));
        }
        let disk = disk.to_str().unwrap();
        let lazy = "lazy_itable_init=0,lazy_journal_init=0";
        succeeds("mkfs.ext4", &["-q", "-F", "-E", lazy, disk]);
        let tree = scene.tree();
        let mounted = client("mount", &["-o", "loop", disk, tree.to_str().unwrap()]);
        if !mounted.status.success() {
            let said = String::from_utf8_lossy(&mounted.stderr).into_owned();
            eprintln!("skipped: the kernel does not mount it: {said}");
            return None;
        }
        Some(scene)
    }

    /// Where the file system is mounted.
    pub fn tree(&self) -> PathBuf {
        self.folder.path().join("tree")
    }

    /// Run a workload to its end; what it says is marked. It says `ack 0` when its tables stand.
    pub fn follow(&self, mut workload: Command) {
        let mut child = workload
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            if let Some(number) = line.strip_prefix("ack ") {
                self.recorder.log.mark(number.trim().parse().unwrap());
            }
        }
        assert!(child.wait().unwrap().success(), "{workload:?}");
    }

    /// Take it all down; what was recorded.
    pub fn finish(mut self) -> Recording {
        // Before the unmount: a power cut finds a mounted file system.
        let events = self.recorder.log.events();
        self.unmount();
        if let Some(serving) = self.serving.take() {
            serving.stop();
        }
        Recording {
            size: self.mib << 20,
            events,
        }
    }

    fn unmount(&mut self) {
        let _ = Command::new("umount").arg(self.tree()).status();
        let fuse = self.folder.path().join("fuse");
        let _ = Command::new("fusermount3").arg("-u").arg(&fuse).status();
        let _ = self.fuse.kill();
        let _ = self.fuse.wait();
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if self.serving.is_some() {
            self.unmount();
        }
    }
}

/// What a database made of an export.
pub struct Recording {
    pub size: u64,
    pub events: Vec<Event>,
}

impl Recording {
    /// Transactions that were acknowledged.
    pub fn transactions(&self) -> u64 {
        let marked = self.events.iter().rev().find_map(|e| match e {
            Event::Marked(n) => Some(*n),
            _ => None,
        });
        marked.expect("the workload acknowledged something")
    }

    pub fn count(&self, wanted: impl Fn(Op) -> bool) -> usize {
        let is = |e: &&Event| matches!(e, Event::Submitted(_, a) if wanted(a.op));
        self.events.iter().filter(is).count()
    }
}
