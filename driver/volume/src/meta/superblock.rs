//! The superblock: everything durable about a volume that is not an intent, in one page.

use crate::cursor::{CURSORS_MAX, Cursor, CursorName};
use crate::meta::page::{self, PAYLOAD, Slot};
use crate::ownership::Role;
use crate::request::META_PAGE_BYTES;
use block::{Epoch, Error, ErrorKind, Generation, ImageMark, Result, VolumeId, VolumeName};

/// Longest image path, in bytes. With names and cursors at their longest it still fits the page.
pub const IMAGE_PATH_MAX: usize = 1024;

/// Who a volume is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its UUID.
    pub id: VolumeId,
    /// Its name.
    pub name: VolumeName,
    /// Where the node keeps its image; not looked at here. At most [`IMAGE_PATH_MAX`] bytes.
    pub image: String,
}

/// The content of the superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    pub(crate) identity: Identity,
    pub(crate) size: u64,
    pub(crate) role: Role,
    /// The highest generation seen.
    pub(crate) seen: Generation,
    /// Epochs up to this one may have been given out.
    pub(crate) ceiling: Epoch,
    pub(crate) cursors: Vec<Cursor>,
    /// Closed in order, with the intents exact.
    pub(crate) clean: bool,
    /// Tells the image from others.
    pub(crate) mark: ImageMark,
    /// The generation in which another image was taken for this one: a copy made in it or before is
    /// not what its record says.
    pub(crate) doubted: Generation,
}

impl Superblock {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut w = Writer(Vec::with_capacity(PAYLOAD));
        w.0.extend_from_slice(&self.identity.id.0);
        w.text(self.identity.name.as_str());
        w.text(&self.identity.image);
        w.number(self.size);
        w.number(self.seen.0);
        w.number(self.ceiling.0);
        w.0.push(u8::from(self.clean));
        match &self.role {
            Role::Standby => w.0.push(0),
            Role::Owner { generation, since } => {
                w.0.push(1);
                w.number(generation.0);
                w.number(since.0);
            }
            Role::Relinquished {
                generation,
                to,
                epoch,
            } => {
                w.0.push(2);
                w.number(generation.0);
                w.text(to.as_str());
                w.number(epoch.0);
            }
        }
        w.0.push(self.cursors.len() as u8);
        for c in &self.cursors {
            let (kind, name) = match &c.name {
                CursorName::Replica(node) => (0, node.as_str()),
                CursorName::Checkpoint(name) => (2, name.as_str()),
                CursorName::FormerOwner => (4, ""),
            };
            w.0.push(kind | u8::from(c.seeded));
            w.text(name);
            w.number(c.epoch.0);
        }
        for n in [self.mark.inode, self.mark.born, self.mark.modified] {
            w.number(n);
        }
        w.number(self.doubted.0);
        w.0
    }

    fn decode(payload: &[u8]) -> Option<Superblock> {
        let mut r = Reader(payload);
        let id = VolumeId(r.bytes(16)?.try_into().ok()?);
        let identity = Identity {
            id,
            name: r.text()?.parse().ok()?,
            image: r.text()?.to_owned(),
        };
        let size = r.number()?;
        let seen = Generation(r.number()?);
        let ceiling = Epoch(r.number()?);
        let clean = r.byte()? != 0;
        let role = match r.byte()? {
            0 => Role::Standby,
            1 => Role::Owner {
                generation: Generation(r.number()?),
                since: Epoch(r.number()?),
            },
            2 => Role::Relinquished {
                generation: Generation(r.number()?),
                to: r.text()?.parse().ok()?,
                epoch: Epoch(r.number()?),
            },
            _ => return None,
        };
        let count = usize::from(r.byte()?);
        if count > CURSORS_MAX {
            return None;
        }
        let mut cursors = Vec::with_capacity(CURSORS_MAX);
        for _ in 0..count {
            let kind = r.byte()?;
            let text = r.text()?;
            let name = match kind & !1 {
                0 => CursorName::Replica(text.parse().ok()?),
                2 => CursorName::Checkpoint(text.parse().ok()?),
                4 => CursorName::FormerOwner,
                _ => return None,
            };
            cursors.push(Cursor {
                name,
                epoch: Epoch(r.number()?),
                seeded: kind & 1 != 0,
            });
        }
        let mark = ImageMark {
            inode: r.number()?,
            born: r.number()?,
            modified: r.number()?,
        };
        let doubted = Generation(r.number()?);
        Some(Superblock {
            mark,
            doubted,
            identity,
            size,
            role,
            seen,
            ceiling,
            cursors,
            clean,
        })
    }
}

/// The superblock found in a metadata file, where it lies and the highest sequence seen.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) superblock: Superblock,
    pub(crate) slot: u8,
    pub(crate) seq: u64,
}

/// Read the superblock from slots 0 and 1. Every change is answered only when both slots hold it, so
/// one good slot is enough, whatever became of the other.
pub(crate) fn find(meta: &[u8]) -> Result<Found> {
    let mut best: Option<Found> = None;
    let mut highest = 0;
    for slot in 0..2u8 {
        let at = usize::from(slot) * META_PAGE_BYTES;
        let Some(bytes) = meta.get(at..at + META_PAGE_BYTES) else {
            continue;
        };
        // A page names its own volume in its first bytes; the checksums are over that name too.
        let mut id = VolumeId([0; 16]);
        id.0.copy_from_slice(&bytes[..16]);
        let read = page::decode(id, 0, bytes);
        highest = highest.max(read.seq());
        if let Slot::Good { seq, payload } = read
            && best.as_ref().is_none_or(|b| b.seq < seq)
            && let Some(superblock) = Superblock::decode(&payload)
        {
            best = Some(Found {
                superblock,
                slot,
                seq,
            });
        }
    }
    let mut found = best.ok_or_else(|| {
        Error::new(
            ErrorKind::Corrupt,
            "open the volume's metadata: neither copy of its superblock can be read, so who owns the \
             volume is unknown; restore the metadata file, or delete the volume and import its image \
             again, which compares it with its replicas",
        )
    })?;
    found.seq = highest;
    Ok(found)
}

struct Writer(Vec<u8>);

impl Writer {
    fn number(&mut self, n: u64) {
        self.0.extend_from_slice(&n.to_le_bytes());
    }
    fn text(&mut self, s: &str) {
        self.0.extend_from_slice(&(s.len() as u16).to_le_bytes());
        self.0.extend_from_slice(s.as_bytes());
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }
    fn byte(&mut self) -> Option<u8> {
        Some(self.bytes(1)?[0])
    }
    fn number(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.bytes(8)?.try_into().ok()?))
    }
    fn text(&mut self) -> Option<&'a str> {
        let n = u16::from_le_bytes(self.bytes(2)?.try_into().ok()?);
        std::str::from_utf8(self.bytes(usize::from(n))?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn largest() -> Superblock {
        let long = "x".repeat(128);
        let cursor = |i: usize| Cursor {
            name: match i % 2 {
                0 => CursorName::Replica(format!("{i:02}{}", &long[2..]).parse().unwrap()),
                _ => CursorName::Checkpoint(format!("{i:02}{}", &long[66..]).parse().unwrap()),
            },
            epoch: Epoch(u64::MAX - i as u64),
            seeded: i.is_multiple_of(3),
        };
        Superblock {
            identity: Identity {
                id: VolumeId([9; 16]),
                name: long.parse().unwrap(),
                image: "/".repeat(IMAGE_PATH_MAX),
            },
            size: 1 << 40,
            role: Role::Relinquished {
                generation: Generation(7),
                to: long.parse().unwrap(),
                epoch: Epoch(4),
            },
            seen: Generation(7),
            ceiling: Epoch(99),
            cursors: (0..CURSORS_MAX).map(cursor).collect(),
            clean: true,
            mark: ImageMark {
                inode: 1,
                born: 2,
                modified: 3,
            },
            doubted: Generation(6),
        }
    }

    #[test]
    fn the_largest_superblock_fits_its_page_and_reads_back() {
        let sb = largest();
        let payload = sb.encode();
        assert!(payload.len() <= PAYLOAD, "{} bytes", payload.len());
        assert_eq!(Superblock::decode(&payload), Some(sb));
    }

    #[test]
    fn no_prefix_of_a_superblock_is_read_as_one() {
        let payload = largest().encode();
        assert!((0..payload.len()).all(|n| Superblock::decode(&payload[..n]).is_none()));
    }

    #[test]
    fn the_newer_good_copy_counts_and_two_bad_ones_are_refused() {
        let mut sb = largest();
        let id = sb.identity.id;
        let mut meta = vec![0; 2 * META_PAGE_BYTES];
        meta[..META_PAGE_BYTES].copy_from_slice(&*page::encode(id, 0, 5, &sb.encode()));
        assert_eq!(find(&meta).unwrap().superblock, sb);
        sb.role = Role::Standby;
        meta[META_PAGE_BYTES..].copy_from_slice(&*page::encode(id, 0, 6, &sb.encode()));
        let found = find(&meta).unwrap();
        assert_eq!((found.slot, found.seq), (1, 6));
        assert_eq!(found.superblock.role, Role::Standby);
        meta[100] ^= 1;
        assert_eq!(find(&meta).unwrap().slot, 1);
        meta[META_PAGE_BYTES + 100] ^= 1;
        let e = find(&meta).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Corrupt);
        assert!(e.context().contains("delete the volume and import"));
        assert!(find(&[]).is_err());
    }
}
