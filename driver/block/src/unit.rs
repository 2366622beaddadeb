//! Units of a disk. Bytes on the guest's side of the gate ([`Span`]), 4 KiB blocks behind it
//! ([`Block`], [`Extent`]), and the two groupings of blocks: the [`Region`], one page of the dirty
//! map, and the [`Area`], one bit of intent.

use std::fmt;

/// The smallest unit a guest may address.
pub const SECTOR_BYTES: u64 = 512;
/// The unit of dirty tracking.
pub const BLOCK_BYTES: u64 = 4096;
/// Blocks whose dirty bits fill one 4 KiB page.
pub const BLOCKS_PER_REGION: u64 = 32_768;
/// Bytes of a region: 128 MiB.
pub const REGION_BYTES: u64 = BLOCKS_PER_REGION * BLOCK_BYTES;
/// Blocks covered by one intent bit.
pub const BLOCKS_PER_AREA: u64 = 1024;
/// Bytes of an area: 4 MiB. Small enough that comparing an area by digest after a crash is cheap,
/// large enough that a guest's working set makes few intents.
pub const AREA_BYTES: u64 = BLOCKS_PER_AREA * BLOCK_BYTES;

/// A run of bytes of a volume, as a client asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Span {
    /// First byte.
    pub offset: u64,
    /// Bytes. Never zero in an admitted request.
    pub len: u64,
}

impl Span {
    /// A span of `len` bytes at `offset`.
    #[must_use]
    pub const fn new(offset: u64, len: u64) -> Span {
        Span { offset, len }
    }

    /// One past the last byte; `None` if that does not fit in 64 bits.
    #[must_use]
    pub const fn checked_end(self) -> Option<u64> {
        self.offset.checked_add(self.len)
    }

    /// One past the last byte. The span must have been checked against the volume's size.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.offset + self.len
    }

    /// Whether the span lies inside a volume of `size` bytes.
    #[must_use]
    pub const fn fits(self, size: u64) -> bool {
        matches!(self.checked_end(), Some(end) if end <= size)
    }

    /// Whether two spans share a byte.
    #[must_use]
    pub const fn overlaps(self, other: Span) -> bool {
        self.offset < other.end() && other.offset < self.end()
    }

    /// Whether both ends are multiples of `unit`, a power of two.
    #[must_use]
    pub const fn is_aligned(self, unit: u64) -> bool {
        (self.offset | self.len) & (unit - 1) == 0
    }

    /// The smallest extent of blocks that covers the span.
    #[must_use]
    pub const fn blocks(self) -> Extent {
        let first = self.offset / BLOCK_BYTES;
        let end = self.end().div_ceil(BLOCK_BYTES);
        Extent {
            start: Block(first),
            count: end - first,
        }
    }
}

/// The index of a 4 KiB block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Block(pub u64);

impl Block {
    /// Byte offset of the block's first byte.
    #[must_use]
    pub const fn offset(self) -> u64 {
        self.0 * BLOCK_BYTES
    }
    /// The region that tracks the block.
    #[must_use]
    pub const fn region(self) -> Region {
        Region(self.0 / BLOCKS_PER_REGION)
    }
    /// The block's bit inside its region's page.
    #[must_use]
    pub const fn bit(self) -> usize {
        (self.0 % BLOCKS_PER_REGION) as usize
    }
    /// The area whose intent covers the block.
    #[must_use]
    pub const fn area(self) -> Area {
        Area(self.0 / BLOCKS_PER_AREA)
    }
}

/// A run of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Extent {
    /// First block.
    pub start: Block,
    /// Number of blocks.
    pub count: u64,
}

impl Extent {
    /// `count` blocks from `start`.
    #[must_use]
    pub const fn new(start: u64, count: u64) -> Extent {
        Extent {
            start: Block(start),
            count,
        }
    }
    /// One past the last block.
    #[must_use]
    pub const fn end(self) -> Block {
        Block(self.start.0 + self.count)
    }
    /// Bytes covered, clipped to a volume of `size` bytes whose last block may be partial.
    #[must_use]
    pub const fn span(self, size: u64) -> Span {
        let offset = self.start.offset();
        let end = self.end().offset();
        let end = if end > size { size } else { end };
        Span {
            offset,
            len: end.saturating_sub(offset),
        }
    }
    /// Every block of the extent in order.
    pub fn iter(self) -> impl Iterator<Item = Block> {
        (self.start.0..self.start.0 + self.count).map(Block)
    }
    /// The areas that the extent touches, first and last inclusive. The extent must not be empty.
    #[must_use]
    pub const fn areas(self) -> (Area, Area) {
        (
            self.start.area(),
            Block(self.start.0 + self.count - 1).area(),
        )
    }
}

/// The index of a 128 MiB region: one 4 KiB page of the dirty map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Region(pub u64);

/// The index of a 4 MiB area: one bit of intent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Area(pub u64);

impl Area {
    /// The blocks of the area, not clipped to the volume.
    #[must_use]
    pub const fn blocks(self) -> Extent {
        Extent {
            start: Block(self.0 * BLOCKS_PER_AREA),
            count: BLOCKS_PER_AREA,
        }
    }
}

/// A numbered point in time of a volume. Everything admitted at the gate before it is in it,
/// nothing later. Epoch 0 is the state at creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch after this one.
    #[must_use]
    pub const fn next(self) -> Epoch {
        Epoch(self.0 + 1)
    }
}

/// The fencing token: grows with every change of owner and never repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Generation(pub u64);

impl Generation {
    /// The generation after this one.
    #[must_use]
    pub const fn next(self) -> Generation {
        Generation(self.0 + 1)
    }
}

macro_rules! display_number {
    ($($t:ty),*) => {$(
        impl fmt::Display for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    )*};
}
display_number!(Block, Region, Area, Epoch, Generation);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.offset, self.len)
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.start, self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_covers_every_block_it_touches() {
        assert_eq!(Span::new(0, 512).blocks(), Extent::new(0, 1));
        assert_eq!(Span::new(4095, 2).blocks(), Extent::new(0, 2));
        assert_eq!(Span::new(4096, 8192).blocks(), Extent::new(1, 2));
    }

    #[test]
    fn a_span_past_the_end_of_the_address_space_fits_nowhere() {
        assert!(!Span::new(u64::MAX - 1, 4).fits(u64::MAX));
        assert!(Span::new(512, 512).fits(1024));
        assert!(!Span::new(512, 513).fits(1024));
    }

    #[test]
    fn the_last_block_is_clipped_to_the_volume() {
        assert_eq!(Extent::new(1, 1).span(4096 + 512), Span::new(4096, 512));
    }

    #[test]
    fn a_region_is_one_page_of_bits_and_areas_divide_it() {
        assert_eq!(BLOCKS_PER_REGION / 8, BLOCK_BYTES);
        assert_eq!(BLOCKS_PER_REGION % BLOCKS_PER_AREA, 0);
        assert_eq!(Block(BLOCKS_PER_REGION).region(), Region(1));
        assert_eq!(Block(BLOCKS_PER_REGION).bit(), 0);
    }
}
