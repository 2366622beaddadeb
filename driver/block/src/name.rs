//! Names and identities. Parsed once at the edge; a name that exists is valid, so it can be a key,
//! a metric label and a directory entry without another check.

use crate::error::{Error, ErrorKind, Result};
use std::fmt;
use std::str::FromStr;

/// Longest name, in bytes: fits a directory entry with room for a suffix, and an NBD export name.
const NAME_MAX: usize = 128;

fn check_name(what: &str, s: &str) -> Result<()> {
    let ok_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let first_ok = s.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
    if first_ok && s.len() <= NAME_MAX && s.chars().all(ok_char) {
        Ok(())
    } else {
        Err(Error::new(
            ErrorKind::Invalid,
            format!(
                "{what} name {s:?}: use 1 to {NAME_MAX} letters, digits, '-', '_' or '.', \
                 beginning with a letter or digit"
            ),
        ))
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $t:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $t(String);

        impl $t {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $t {
            type Err = Error;
            fn from_str(s: &str) -> Result<$t> {
                check_name($what, s)?;
                Ok($t(s.to_owned()))
            }
        }

        impl fmt::Display for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

name!(
    /// The name of a volume, unique in a fleet.
    VolumeName,
    "volume"
);
name!(
    /// The name of a node, unique in a fleet.
    NodeName,
    "node"
);

/// The identity of a volume: a UUID that its metadata, its replicas and every replication session
/// carry, so that a swapped image or a recreated name is never mistaken for the volume.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeId(pub [u8; 16]);

impl VolumeId {
    /// A version 4 UUID from 16 random bytes.
    #[must_use]
    pub fn from_random(mut bytes: [u8; 16]) -> VolumeId {
        bytes[6] = (bytes[6] & 0x0f) | 0x40;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        VolumeId(bytes)
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, b) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{b:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for VolumeId {
    type Err = Error;
    fn from_str(s: &str) -> Result<VolumeId> {
        let bad = || Error::new(ErrorKind::Invalid, format!("volume id {s:?} is not a UUID"));
        let hex: String = s.chars().filter(|c| *c != '-').collect();
        if hex.len() != 32 || !hex.is_ascii() {
            return Err(bad());
        }
        let mut id = [0u8; 16];
        for (i, byte) in id.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).map_err(|_| bad())?;
        }
        Ok(VolumeId(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_be_paths_are_refused() {
        for bad in ["", ".", "..", "a/b", "-x", "a b", "ä"] {
            assert!(bad.parse::<VolumeName>().is_err(), "{bad:?}");
        }
        assert!("x".repeat(129).parse::<NodeName>().is_err());
        assert_eq!(
            "vm-1.disk_0".parse::<VolumeName>().unwrap().as_str(),
            "vm-1.disk_0"
        );
    }

    #[test]
    fn a_volume_id_reads_back() {
        let id = VolumeId::from_random([0xa5; 16]);
        assert_eq!(id.to_string().parse::<VolumeId>().unwrap(), id);
        assert_eq!(id.to_string().len(), 36);
    }
}
