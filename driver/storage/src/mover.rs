//! A file as the bulk movers use it: a [`block::Disk`] on tokio-uring.
//!
//! Transfers that are aligned to what O_DIRECT needs go that way and leave the page cache alone;
//! the odd tail of an image whose size is no multiple of it goes through a buffered descriptor. What the
//! page cache has as a whole is copied from there.
//! Asking for holes may wait for file system metadata, which a mover's thread may and a shard may
//! not.

mod loan;

use crate::open::{CacheMode, ImageFile, OpenOptions};
use crate::sparse;
use block::{AlignedBuf, Disk, Error, ErrorKind, Result, Span};
use libc::{FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE};
use loan::Loan;
use std::cell::Cell;
use std::io;
use std::path::Path;
use tokio_uring::buf::BoundedBuf;
use tokio_uring::fs::File;

/// Longest range of one fallocate: it holds the inode's lock and a journal transaction.
const RANGE_MAX: u64 = 256 << 20;
/// Longest piece that is zeroed by writing at once.
const WRITE_MAX: u64 = 1 << 20;

/// A file or block device on a mover's ring.
pub struct MoverFile {
    main: File,
    buffered: Option<File>,
    /// Asked for holes.
    map: std::fs::File,
    unit: u64,
    size: u64,
    /// The ways of zeroing that this file is known to lack are not asked for again.
    punches: Cell<bool>,
    zeroes: Cell<bool>,
}

impl MoverFile {
    /// Move an opened image. Must be called on a tokio-uring runtime's thread.
    pub fn new(image: ImageFile) -> Result<MoverFile> {
        Ok(MoverFile {
            map: image.duplicate()?,
            main: File::from_std(image.main.into()),
            buffered: image.buffered.map(|fd| File::from_std(fd.into())),
            unit: u64::from(image.unit),
            size: image.size,
            punches: Cell::new(image.punches),
            zeroes: Cell::new(true),
        })
    }

    /// Open a file of the mover's own (staging, record), made sparse with `size` bytes if it does
    /// not exist and grown to them if it is shorter. It is not to be open twice.
    pub fn open(path: &Path, size: u64) -> Result<MoverFile> {
        let shown = path.display();
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(|e| Error::io(format!("open {shown}"), e))?;
        let grow = || {
            if file.metadata()?.len() < size {
                file.set_len(size)?;
                file.sync_all()?;
            }
            Ok(())
        };
        grow().map_err(|e: io::Error| Error::io(format!("make {shown} of {size} bytes"), e))?;
        let options = OpenOptions {
            cache: CacheMode::Direct,
            ..OpenOptions::default()
        };
        MoverFile::new(ImageFile::open(path, &options)?)
    }

    /// The descriptor that takes this transfer.
    fn way(&self, offset: u64, len: u64) -> &File {
        match &self.buffered {
            Some(buffered) if !Span::new(offset, len).is_aligned(self.unit) => buffered,
            _ => &self.main,
        }
    }

    fn check(&self, what: &str, span: Span) -> Result<()> {
        if span.fits(self.size) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Invalid,
            format!("{what} {span}: past the end of the file at {}", self.size),
        ))
    }

    async fn read_all(&self, offset: u64, mut loan: Loan) -> (io::Result<()>, Loan) {
        let len = loan.0.len();
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let file = self.way(at, (len - done) as u64);
            let (result, slice) = file.read_at(loan.slice(done..), at).await;
            loan = slice.into_inner();
            match result {
                Ok(0) => return (Err(io::ErrorKind::UnexpectedEof.into()), loan),
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return (Err(e), loan),
            }
        }
        (Ok(()), loan)
    }

    async fn write_all(&self, offset: u64, mut loan: Loan) -> (io::Result<()>, Loan) {
        let len = loan.0.len();
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let file = self.way(at, (len - done) as u64);
            let (result, slice) = file.write_at(loan.slice(done..), at).submit().await;
            loan = slice.into_inner();
            match result {
                Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), loan),
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return (Err(e), loan),
            }
        }
        (Ok(()), loan)
    }

    /// Zero by fallocate: false if this file cannot.
    async fn zero_range(&self, span: Span) -> Result<bool> {
        for (can, mode) in [
            (&self.punches, FALLOC_FL_PUNCH_HOLE),
            (&self.zeroes, FALLOC_FL_ZERO_RANGE),
        ] {
            if !can.get() {
                continue;
            }
            let mode = mode | FALLOC_FL_KEEP_SIZE;
            match self.main.fallocate(span.offset, span.len, mode).await {
                Ok(()) => return Ok(true),
                Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => can.set(false),
                // A device takes whole sectors only: write this one.
                Err(e) if e.raw_os_error() == Some(libc::EINVAL) => return Ok(false),
                Err(e) => return Err(Error::io(format!("zero {span}"), e)),
            }
        }
        Ok(false)
    }
}

impl Disk for MoverFile {
    fn size(&self) -> u64 {
        self.size
    }

    async fn read(&self, offset: u64, buf: AlignedBuf) -> (Result<()>, AlignedBuf) {
        let span = Span::new(offset, buf.len() as u64);
        if let Err(e) = self.check("read", span) {
            return (Err(e), buf);
        }
        let (result, loan) = self.read_all(offset, Loan(buf)).await;
        (
            result.map_err(|e| Error::io(format!("read {span}"), e)),
            loan.0,
        )
    }

    async fn write(&self, offset: u64, buf: AlignedBuf) -> (Result<()>, AlignedBuf) {
        let span = Span::new(offset, buf.len() as u64);
        if let Err(e) = self.check("write", span) {
            return (Err(e), buf);
        }
        let (result, loan) = self.write_all(offset, Loan(buf)).await;
        (
            result.map_err(|e| Error::io(format!("write {span}"), e)),
            loan.0,
        )
    }

    async fn zero(&self, offset: u64, len: u64) -> Result<()> {
        self.check("zero", Span::new(offset, len))?;
        let mut at = offset;
        let end = offset + len;
        while at < end {
            let span = Span::new(at, (end - at).min(RANGE_MAX));
            if !self.zero_range(span).await? {
                let mut from = span.offset;
                while from < span.end() {
                    let n = (span.end() - from).min(WRITE_MAX);
                    let zeroes = AlignedBuf::zeroed(n as usize);
                    self.write(from, zeroes).await.0?;
                    from += n;
                }
            }
            at = span.end();
        }
        Ok(())
    }

    async fn sync(&self) -> Result<()> {
        // One inode: what went through the buffered descriptor is covered too.
        self.main
            .sync_data()
            .await
            .map_err(|e| Error::io("fdatasync", e))
    }

    async fn next_data(&self, offset: u64) -> Result<Option<(u64, u64)>> {
        if offset >= self.size {
            return Ok(None);
        }
        let rest = Span::new(offset, self.size - offset);
        let runs = sparse::runs(&self.map, rest, 2)?;
        let data = runs.into_iter().find(|r| !r.hole);
        Ok(data.map(|r| (r.span.offset, r.span.end())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    /// Not a multiple of any sector but 512.
    const SIZE: u64 = (3 << 20) + 512;

    fn with_disk<R>(cache: CacheMode, f: impl AsyncFnOnce(MoverFile, std::fs::File) -> R) -> R {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let options = OpenOptions {
            cache,
            create: Some(SIZE),
            ..OpenOptions::default()
        };
        let image = ImageFile::open(&path, &options).unwrap();
        let plain = std::fs::File::open(&path).unwrap();
        tokio_uring::start(async { f(MoverFile::new(image).unwrap(), plain).await })
    }

    #[test]
    fn reads_what_was_written_tail_included() {
        for cache in [CacheMode::Direct, CacheMode::Writeback] {
            with_disk(cache, async |disk, plain| {
                let mut buf = AlignedBuf::zeroed(1 << 20);
                buf.fill(7);
                disk.write(1 << 20, buf).await.0.unwrap();
                let tail = AlignedBuf::copy_of(&[9; 4096 + 512]);
                disk.write(SIZE - 4096 - 512, tail).await.0.unwrap();
                disk.sync().await.unwrap();
                let mut seen = vec![0; 4608];
                plain.read_exact_at(&mut seen, SIZE - 4608).unwrap();
                assert_eq!(seen, [9; 4608]);
                let (result, buf) = disk.read(1 << 20, AlignedBuf::zeroed(1 << 20)).await;
                result.unwrap();
                assert!(buf.iter().all(|b| *b == 7));
                let past = disk.read(SIZE - 512, AlignedBuf::zeroed(1024)).await.0;
                assert_eq!(past.unwrap_err().kind(), ErrorKind::Invalid);
            });
        }
    }

    #[test]
    fn finds_data_and_makes_holes() {
        with_disk(CacheMode::Direct, async |disk, _| {
            assert_eq!(disk.next_data(0).await.unwrap(), None);
            let mut buf = AlignedBuf::zeroed(2 << 20);
            buf.fill(7);
            disk.write(1 << 20, buf).await.0.unwrap();
            disk.sync().await.unwrap();
            let (start, end) = disk.next_data(0).await.unwrap().unwrap();
            assert_eq!((start, end), (1 << 20, 3 << 20));
            assert_eq!(
                disk.next_data((1 << 20) + 4096).await.unwrap(),
                Some(((1 << 20) + 4096, 3 << 20))
            );
            disk.zero(1 << 20, 1 << 20).await.unwrap();
            let (start, _) = disk.next_data(0).await.unwrap().unwrap();
            assert_eq!(start, 2 << 20);
            let (result, buf) = disk.read(1 << 20, AlignedBuf::zeroed(1 << 20)).await;
            result.unwrap();
            assert!(buf.is_zero());
        });
    }

    #[test]
    fn a_file_that_cannot_punch_is_zeroed_by_writing() {
        with_disk(CacheMode::Direct, async |disk, plain| {
            disk.punches.set(false);
            disk.zeroes.set(false);
            let data = AlignedBuf::copy_of(&[7; 3 * 4096]);
            disk.write(4096, data).await.0.unwrap();
            disk.zero(4096 + 512, 4096).await.unwrap();
            let mut seen = vec![0; 3 * 4096];
            plain.read_exact_at(&mut seen, 4096).unwrap();
            assert!(seen[..512].iter().all(|b| *b == 7));
            assert!(seen[512..512 + 4096].iter().all(|b| *b == 0));
            assert!(seen[512 + 4096..].iter().all(|b| *b == 7));
        });
    }
}
