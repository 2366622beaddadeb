//! Where a file has data and where holes. These calls may read file system metadata from disk:
//! they run on a thread that may wait, never on a shard.

use block::{Error, Result, Span};
use std::fs::File;
use std::os::fd::AsRawFd;

/// A run of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where.
    pub span: Span,
    /// Reads as zeroes and takes no space.
    pub hole: bool,
}

/// The runs of `span`, in order, at most `max` of them: fewer than the span holds if there are
/// more. A file that cannot tell is all data.
pub fn runs(file: &File, span: Span, max: usize) -> Result<Vec<Run>> {
    let mut found = Vec::new();
    let mut at = span.offset;
    while at < span.end() && found.len() < max {
        let (hole, end) = match seek(file, at, libc::SEEK_DATA) {
            Ok(Some(data)) if data > at => (true, data),
            Ok(None) => (true, span.end()),
            Ok(Some(_)) => {
                let end = seek(file, at, libc::SEEK_HOLE)?;
                (false, end.unwrap_or(span.end()))
            }
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => (false, span.end()),
            Err(e) => return Err(e),
        };
        let end = end.min(span.end());
        found.push(Run {
            span: Span::new(at, end - at),
            hole,
        });
        at = end;
    }
    Ok(found)
}

fn seek(file: &File, from: u64, whence: i32) -> Result<Option<u64>> {
    // SAFETY: no memory is passed. The descriptor's position changes, but every transfer on it
    // names its own offset.
    let at = unsafe { libc::lseek(file.as_raw_fd(), from as libc::off_t, whence) };
    if at >= 0 {
        return Ok(Some(at as u64));
    }
    let e = std::io::Error::last_os_error();
    match e.raw_os_error() {
        Some(libc::ENXIO) => Ok(None),
        _ => Err(Error::io(format!("look for data and holes at {from}"), e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn runs_follow_what_was_written() {
        let file = tempfile::tempfile_in(std::env::temp_dir()).unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(&[7; 8192], 256 << 10).unwrap();
        let all = runs(&file, Span::new(0, 1 << 20), 10).unwrap();
        assert_eq!(all.iter().map(|r| r.span.len).sum::<u64>(), 1 << 20);
        let data: Vec<_> = all.iter().filter(|r| !r.hole).collect();
        assert_eq!(data.len(), 1);
        assert!(data[0].span.offset <= 256 << 10 && data[0].span.end() >= (256 << 10) + 8192);
        let inside = runs(&file, Span::new((256 << 10) + 512, 100), 10).unwrap();
        assert_eq!(
            inside,
            [Run {
                span: Span::new((256 << 10) + 512, 100),
                hole: false
            }]
        );
        assert_eq!(runs(&file, Span::new(0, 1 << 20), 1).unwrap().len(), 1);
    }
}
