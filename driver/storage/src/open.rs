//! Opening an image: what kind of file, how large, aligned to what, and ours alone.

use block::{Error, ErrorKind, ImageMark, Result};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use std::fs::{File, OpenOptions as FsOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

/// How reads and writes meet the page cache. The names are those that QEMU users know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheMode {
    /// O_DIRECT: the page cache is passed by.
    #[default]
    Direct,
    /// The page cache holds writes until a flush.
    Writeback,
}

impl FromStr for CacheMode {
    type Err = Error;
    fn from_str(s: &str) -> Result<CacheMode> {
        match s {
            "direct" => Ok(CacheMode::Direct),
            "writeback" => Ok(CacheMode::Writeback),
            _ => Err(Error::new(
                ErrorKind::Invalid,
                format!("cache mode {s:?}: use direct or writeback"),
            )),
        }
    }
}

/// How to open an image.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// Page cache or not.
    pub cache: CacheMode,
    /// Refuse writes; several read-only servers may share an image.
    pub read_only: bool,
    /// Make a sparse file of this many bytes; it must not exist yet.
    pub create: Option<u64>,
}

/// An open, locked image that no shard has yet.
#[derive(Debug)]
pub struct ImageFile {
    /// Where it is.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    /// What told it from other images when it was opened.
    pub mark: ImageMark,
    pub(crate) main: OwnedFd,
    /// A second, buffered descriptor where `main` is O_DIRECT: for the piece of the last unit of a
    /// file whose size is no multiple of it.
    pub(crate) buffered: Option<OwnedFd>,
    /// Offsets and lengths that `main` takes must be multiples of this.
    pub(crate) unit: u32,
    pub(crate) device: bool,
    pub(crate) punches: bool,
}

/// Have a file's content come from its disk again. A sync that failed in an earlier process was told once;
/// the pages that it could not write are clean since, and are served for as long as the kernel has room for
/// them. What they say was never written, and another sync of them succeeds.
pub(crate) fn read_anew(file: &File) -> io::Result<()> {
    // Pages that still wait to be written stay. Should that fail, the next sync says so.
    Ok(posix_fadvise(
        file,
        0,
        0,
        PosixFadviseAdvice::POSIX_FADV_DONTNEED,
    )?)
}

/// The unit assumed where the kernel does not tell: no disk has larger sectors.
const UNIT_UNKNOWN: u32 = 4096;

impl ImageFile {
    /// Open `path`.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<ImageFile> {
        let shown = path.display();
        let mut fs = FsOptions::new();
        fs.read(true).write(!options.read_only);
        if let Some(size) = options.create {
            create(path, size)?;
        }
        let plain = fs.open(path).map_err(|e| explain_open(path, options, e))?;
        let meta = plain
            .metadata()
            .map_err(|e| Error::io(format!("stat image {shown}"), e))?;
        let device = meta.file_type().is_block_device();
        if !device && !meta.file_type().is_file() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("image {shown} is neither a regular file nor a block device"),
            ));
        }
        let size = if device {
            device_size(&plain).map_err(|e| Error::io(format!("size of device {shown}"), e))?
        } else {
            meta.len()
        };
        if size == 0 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("image {shown} is empty: give it a size with --create or truncate -s"),
            ));
        }
        lock(&plain, path, options.read_only)?;
        read_anew(&plain).map_err(|e| Error::io(format!("read image {shown} anew"), e))?;
        // Before anything is tried on it that its file system could take for a change.
        let mark = crate::mark(&plain)?;
        let punches = !options.read_only && (device || can_punch(&plain, size));
        let (main, buffered, unit) = match options.cache {
            CacheMode::Writeback => (plain.into(), None, 1),
            CacheMode::Direct => {
                fs.custom_flags(libc::O_DIRECT);
                match fs.open(path) {
                    Ok(direct) => {
                        let unit = dio_unit(&direct).unwrap_or(UNIT_UNKNOWN);
                        (direct.into(), Some(plain.into()), unit)
                    }
                    Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
                        tracing::warn!(
                            "the file system of {shown} has no O_DIRECT: using the page cache, \
                             as --cache writeback does"
                        );
                        (plain.into(), None, 1)
                    }
                    Err(e) => return Err(Error::io(format!("open image {shown} O_DIRECT"), e)),
                }
            }
        };
        Ok(ImageFile {
            path: path.to_owned(),
            size,
            mark,
            main,
            buffered,
            unit,
            device,
            punches,
        })
    }

    /// Whether TRIM gives space back. Where it cannot, it had better not be offered: every trim
    /// would be a write of zeroes.
    #[must_use]
    pub fn can_trim(&self) -> bool {
        self.punches
    }

    /// The smallest unit that needs no read-modify-write.
    #[must_use]
    pub fn unit(&self) -> u32 {
        self.unit
    }

    /// The same open image for another user in this process: the lock is shared.
    pub fn share(&self) -> Result<ImageFile> {
        let clone = |fd: &OwnedFd| {
            fd.try_clone()
                .map_err(|e| Error::io("duplicate a descriptor", e))
        };
        Ok(ImageFile {
            path: self.path.clone(),
            main: clone(&self.main)?,
            buffered: self.buffered.as_ref().map(clone).transpose()?,
            ..*self
        })
    }

    /// Another descriptor of the same file, for [`crate::sparse`].
    pub fn duplicate(&self) -> Result<File> {
        self.main
            .try_clone()
            .map(File::from)
            .map_err(|e| Error::io("duplicate a descriptor", e))
    }
}

fn create(path: &Path, size: u64) -> Result<()> {
    let shown = path.display();
    let made = FsOptions::new().write(true).create_new(true).open(path);
    let file = made.map_err(|e| {
        if e.kind() == io::ErrorKind::AlreadyExists {
            Error::new(
                ErrorKind::Exists,
                format!("create image {shown}: it exists already; leave --create out to serve it"),
            )
        } else {
            Error::io(format!("create image {shown}"), e)
        }
    })?;
    file.set_len(size)
        .and_then(|()| file.sync_all())
        .map_err(|e| {
            let _ = std::fs::remove_file(path);
            Error::io(format!("create image {shown} of {size} bytes"), e)
        })
}

fn explain_open(path: &Path, options: &OpenOptions, e: io::Error) -> Error {
    let shown = path.display();
    match e.kind() {
        io::ErrorKind::NotFound => Error::io(
            format!("open image {shown} (--create SIZE makes a new one)"),
            e,
        ),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
            if !options.read_only =>
        {
            Error::io(
                format!("open image {shown} for writing (--read-only would serve it unchanged)"),
                e,
            )
        }
        io::ErrorKind::IsADirectory => Error::io(
            format!("open image {shown} (a raw image file or a block device can be served)"),
            e,
        ),
        _ => Error::io(format!("open image {shown}"), e),
    }
}

/// How long a lock that somebody holds is asked for again. The kernel takes a killed process's ring
/// apart after the process is gone, and with it the ring's hold on the image: a supervisor that
/// restarts at once would be told that the image is in use.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// Take the whole file with an OFD lock: shared for readers, exclusive for a writer. QEMU takes
/// OFD locks on bytes of the same file, so the two exclude each other too. The lock goes with the
/// descriptor, however the process ends.
fn lock(file: &File, path: &Path, read_only: bool) -> Result<()> {
    // SAFETY: flock is a C struct of integers; all zero is a valid value of it.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    let kind = if read_only {
        libc::F_RDLCK
    } else {
        libc::F_WRLCK
    };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    let began = Instant::now();
    let e = loop {
        // SAFETY: the descriptor is open and the struct lives across the call.
        let taken = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
        if taken == 0 {
            return Ok(());
        }
        let e = io::Error::last_os_error();
        let held = matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES));
        if !held || began.elapsed() >= LOCK_PATIENCE {
            break e;
        }
        std::thread::sleep(LOCK_PAUSE);
    };
    let shown = path.display();
    match e.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Err(Error::new(
            ErrorKind::Busy,
            format!(
                "image {shown} is in use: another process (forerun, QEMU or qemu-nbd) has it \
                 locked; stop that one first (`lsof {shown}` names it)"
            ),
        )),
        Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOLCK) => {
            tracing::warn!(
                "the file system of {shown} has no locks ({e}): make sure that nothing else \
                 writes the image"
            );
            Ok(())
        }
        _ => Err(Error::io(format!("lock image {shown}"), e)),
    }
}

pub(crate) fn device_size(file: &File) -> io::Result<u64> {
    use std::io::{Seek, SeekFrom};
    let mut file: &File = file;
    file.seek(SeekFrom::End(0))
}

/// The alignment that O_DIRECT really needs here: whatever is advertised to clients, some send
/// 512-byte requests.
fn dio_unit(file: &File) -> Option<u32> {
    const STATX_DIOALIGN: u32 = 0x2000;
    // SAFETY: statx is a C struct of integers; all zero is a valid value of it.
    let mut st: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: an open descriptor, an empty NUL-terminated path (AT_EMPTY_PATH) and a struct that
    // the kernel fills.
    let done = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            STATX_DIOALIGN,
            &raw mut st,
        )
    };
    let known = done == 0 && st.stx_mask & STATX_DIOALIGN != 0;
    let unit = st.stx_dio_offset_align.max(st.stx_dio_mem_align);
    (known && unit.is_power_of_two() && unit <= UNIT_UNKNOWN).then_some(unit.max(512))
}

/// Whether holes can be punched, asked past the end of the file, where there is nothing to lose.
fn can_punch(file: &File, size: u64) -> bool {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let past = size.next_multiple_of(4096) as libc::off_t;
    let changed = file.metadata().and_then(|m| m.modified());
    // SAFETY: no memory is passed.
    let can = unsafe { libc::fallocate(file.as_raw_fd(), mode, past, 4096) == 0 };
    if let Ok(changed) = changed {
        // It changed nothing, and must not look as if it had. Only the file's owner may say so.
        let _ = file.set_modified(changed);
    }
    can
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir() -> tempfile::TempDir {
        tempfile::tempdir_in(std::env::temp_dir()).unwrap()
    }

    #[test]
    fn a_created_image_is_sparse_and_is_not_created_twice() {
        let dir = dir();
        let path = dir.path().join("a.img");
        let options = OpenOptions {
            create: Some(1 << 30),
            ..OpenOptions::default()
        };
        let image = ImageFile::open(&path, &options).unwrap();
        assert_eq!(image.size, 1 << 30);
        assert!(image.can_trim());
        let e = ImageFile::open(&path, &options).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Exists);
        assert!(e.to_string().contains("--create"), "{e}");
    }

    #[test]
    fn one_writer_or_many_readers() {
        let dir = dir();
        let path = dir.path().join("a.img");
        let rw = OpenOptions {
            create: Some(1 << 20),
            ..OpenOptions::default()
        };
        let ro = OpenOptions {
            read_only: true,
            ..OpenOptions::default()
        };
        let writer = ImageFile::open(&path, &rw).unwrap();
        let e = ImageFile::open(&path, &ro).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Busy);
        assert!(e.to_string().contains("lsof"), "{e}");
        drop(writer);
        let first = ImageFile::open(&path, &ro).unwrap();
        let second = ImageFile::open(&path, &ro).unwrap();
        let again = OpenOptions::default();
        assert_eq!(
            ImageFile::open(&path, &again).unwrap_err().kind(),
            ErrorKind::Busy
        );
        drop((first, second));
        ImageFile::open(&path, &again).unwrap();
    }

    #[test]
    fn what_cannot_be_served_says_so() {
        let dir = dir();
        let open = |p: &Path| ImageFile::open(p, &OpenOptions::default()).unwrap_err();
        let missing = open(&dir.path().join("none"));
        assert_eq!(missing.kind(), ErrorKind::NotFound);
        assert!(missing.to_string().contains("--create"));
        let read_only_dir = open(dir.path());
        assert_ne!(read_only_dir.kind(), ErrorKind::Broken);
        let empty = dir.path().join("empty");
        std::fs::write(&empty, b"").unwrap();
        assert!(open(&empty).to_string().contains("empty"));
    }
}
