//! What tells one image from another of the same size.

/// What a file system says about an image file. A value of zero is not known and is not compared.
///
/// The device's number is not in it: it may be another one after every boot. Nor is the time of the last
/// change of the inode: a rename or a chmod of the image harms nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImageMark {
    /// The inode's number.
    pub inode: u64,
    /// When the file was made, in nanoseconds since 1970.
    pub born: u64,
    /// When its content last changed, the same. Known of an image that nobody writes to.
    pub modified: u64,
}

impl ImageMark {
    /// How the image that was `found` is not the one of this mark; `None` if it may be.
    #[must_use]
    pub fn difference(&self, found: &ImageMark) -> Option<&'static str> {
        let differ = |a: u64, b: u64| a != 0 && b != 0 && a != b;
        if differ(self.inode, found.inode) || differ(self.born, found.born) {
            return Some("another file is in the place of the image");
        }
        if differ(self.modified, found.modified) {
            return Some("the image was written to by something else since it was closed here");
        }
        None
    }

    /// The mark of the same image while it is written to.
    #[must_use]
    pub fn in_use(self) -> ImageMark {
        ImageMark {
            modified: 0,
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_both_know_must_agree_and_the_rest_is_let_pass() {
        let known = ImageMark {
            inode: 7,
            born: 8,
            modified: 9,
        };
        let differs = |found| known.difference(&found).is_some();
        assert!(!differs(known) && !differs(ImageMark::default()));
        assert!(ImageMark::default().difference(&known).is_none());
        assert!(differs(ImageMark { inode: 1, ..known }));
        assert!(differs(ImageMark { born: 1, ..known }));
        let written = ImageMark {
            modified: 1,
            ..known
        };
        assert!(differs(written));
        assert!(known.in_use().difference(&written).is_none());
    }
}
