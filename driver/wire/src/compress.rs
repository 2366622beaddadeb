//! zstd with contexts that are reused from frame to frame.

use block::{Error, ErrorKind, Result};
use std::io;

/// zstd's fastest ordinary level: replication is bound by disks and links more often than by ratio.
const LEVEL: i32 = 1;

/// Bytes of a frame's content that are compressed first: content whose sample does not shrink is
/// sent as it is, at the price of some tens of microseconds a MiB.
const SAMPLE: usize = 16 << 10;

/// Compresses content where that pays.
pub struct Compressor {
    context: zstd::bulk::Compressor<'static>,
    out: Vec<u8>,
}

impl Compressor {
    /// A compressor with its own context.
    pub fn new() -> Result<Compressor> {
        let context = zstd::bulk::Compressor::new(LEVEL).map_err(|e| context_failed(&e))?;
        Ok(Compressor {
            context,
            out: vec![0; crate::MAX_CONTENT],
        })
    }

    /// `content` compressed, if that saves at least an eighth of it.
    pub fn shrink(&mut self, content: &[u8]) -> Option<&[u8]> {
        if content.len() > 2 * SAMPLE {
            let from = (content.len() - SAMPLE) / 2;
            self.squeeze(&content[from..from + SAMPLE])?;
        }
        let n = self.squeeze(content)?;
        Some(&self.out[..n])
    }

    /// Compress into the output buffer; `None` if less than an eighth is saved.
    fn squeeze(&mut self, content: &[u8]) -> Option<usize> {
        let limit = content.len() - content.len() / 8;
        let out = self.out.get_mut(..limit)?;
        self.context.compress_to_buffer(content, out).ok()
    }
}

/// Restores compressed content.
pub struct Decompressor(zstd::bulk::Decompressor<'static>);

impl Decompressor {
    /// A decompressor with its own context.
    pub fn new() -> Result<Decompressor> {
        let context = zstd::bulk::Decompressor::new().map_err(|e| context_failed(&e))?;
        Ok(Decompressor(context))
    }

    /// Fill `out` from `packed`, which must hold exactly that much.
    pub fn restore(&mut self, packed: &[u8], out: &mut [u8]) -> Result<()> {
        match self.0.decompress_to_buffer(packed, out) {
            Ok(n) if n == out.len() => Ok(()),
            _ => Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "compressed content does not restore to the {} bytes of its spans",
                    out.len()
                ),
            )),
        }
    }
}

fn context_failed(e: &io::Error) -> Error {
    Error::new(ErrorKind::Broken, format!("create a zstd context: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_shrinks_comes_back_and_what_does_not_is_left_alone() {
        let mut c = Compressor::new().unwrap();
        let text: Vec<u8> = b"the disk gets there before the VM does. "
            .iter()
            .copied()
            .cycle()
            .take(300_000)
            .collect();
        let packed = c.shrink(&text).unwrap().to_vec();
        assert!(packed.len() < text.len() / 10);
        let mut out = vec![0; text.len()];
        let mut d = Decompressor::new().unwrap();
        d.restore(&packed, &mut out).unwrap();
        assert_eq!(out, text);
        assert!(d.restore(&packed, &mut vec![0; text.len() + 1]).is_err());
        assert!(d.restore(&packed, &mut vec![0; text.len() - 1]).is_err());
        assert!(d.restore(b"nonsense", &mut out).is_err());

        let mut x = 0x9e37_79b9_7f4a_7c15_u64;
        let noise: Vec<u8> = (0..300_000)
            .map(|_| {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                x as u8
            })
            .collect();
        assert!(c.shrink(&noise).is_none());
        assert!(c.shrink(&[]).is_none());
    }
}
