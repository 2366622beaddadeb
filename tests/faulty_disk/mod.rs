//! Disks that fail when they are told to.
#![allow(
    dead_code,
    reason = "each test file is a crate of its own and uses a part of this"
)]
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking and speaks to the person who runs it"
)]

use crate::serving::mount::LoopMount;
use crate::serving::{have, have_root, succeeds};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const START: Duration = Duration::from_secs(20);

/// An image whose reads, writes and flushes fail while there is a file of that name in its folder.
pub struct BadDisk {
    folder: tempfile::TempDir,
    fuse: Child,
}

impl BadDisk {
    pub fn new() -> BadDisk {
        BadDisk::of(4)
    }

    pub fn of(mib: u64) -> BadDisk {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        std::fs::File::create(at.join("data"))
            .unwrap()
            .set_len(mib << 20)
            .unwrap();
        std::fs::create_dir(at.join("mount")).unwrap();
        let t = at.display();
        let fails = |what| format!("if [ -e {t}/{what} ]; then echo EIO told to >&2; exit 1; fi; ");
        let fuse = Command::new("nbdfuse")
            .arg(at.join("mount"))
            .args([
                "--command",
                "nbdkit",
                "-s",
                "eval",
                &format!("get_size=echo {mib}M"),
            ])
            .args(["can_write=exit 0", "can_flush=exit 0"])
            .arg(format!(
                "pread={}dd if={t}/data skip=$4 count=$3 iflag=count_bytes,skip_bytes",
                fails("read")
            ))
            .arg(format!(
                "pwrite={}dd of={t}/data seek=$4 conv=notrunc oflag=seek_bytes",
                fails("write")
            ))
            .arg(format!("flush={}true", fails("flush")))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let disk = BadDisk { folder, fuse };
        let began = Instant::now();
        while !disk.image().exists() {
            assert!(began.elapsed() < START, "nbdfuse does not mount");
            std::thread::sleep(Duration::from_millis(10));
        }
        disk
    }

    pub fn image(&self) -> PathBuf {
        self.folder.path().join("mount/nbd")
    }

    /// Run `f` while `what` fails.
    pub fn failing<T>(&self, what: &str, f: impl FnOnce() -> T) -> T {
        let told = self.folder.path().join(what);
        std::fs::write(&told, "").unwrap();
        let result = f();
        std::fs::remove_file(&told).unwrap();
        result
    }
}

/// A file system on such a disk. It has no journal, which would make it read-only at the first error.
pub struct BadFileSystem {
    mounted: LoopMount,
    pub disk: BadDisk,
}

impl BadFileSystem {
    /// Mounted at a folder that is there, or at one of its own. None, with the reason printed, where that
    /// cannot be had.
    pub fn new(mib: u64, at: Option<&Path>) -> Option<BadFileSystem> {
        if !can_run() || !have(&["mkfs.ext4", "mount"]) || !have_root() {
            return None;
        }
        let disk = BadDisk::of(mib);
        let image = disk.image();
        let how = ["-q", "-F", "-m0", "-O", "^has_journal", image.to_str()?];
        succeeds("mkfs.ext4", &how);
        let mounted = LoopMount::new(&image, at)?;
        Some(BadFileSystem { mounted, disk })
    }

    pub fn path(&self) -> &Path {
        self.mounted.path()
    }
}

/// Forgets what the kernel remembers of a file and need not write, as a power cut does.
pub fn forget_cached(path: &Path) {
    let file = std::fs::File::open(path).unwrap();
    let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
    nix::fcntl::posix_fadvise(&file, 0, 0, advice).unwrap();
}

impl Drop for BadDisk {
    fn drop(&mut self) {
        let mount = self.folder.path().join("mount");
        // Lazily: a program that is being ended may still have the image open.
        let _ = Command::new("fusermount3")
            .args(["-u", "-z"])
            .arg(&mount)
            .status();
        let _ = self.fuse.kill();
        let _ = self.fuse.wait();
    }
}

/// False, with the reason printed, where such a disk cannot be had.
pub fn can_run() -> bool {
    if !Path::new("/dev/fuse").exists() {
        eprintln!("skipped: no /dev/fuse");
        return false;
    }
    have(&["nbdfuse", "nbdkit", "nbdsh", "fusermount3"])
}
