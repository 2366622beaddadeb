//! Units, so that seconds are not added to bytes and a price is not taken for a rate.

use serde::{Deserialize, Serialize};
use std::fmt;

const GIB: f64 = (1u64 << 30) as f64;

/// A length of time in whole seconds: planning needs nothing finer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Seconds(pub u64);

/// A moment: seconds since 1970, UTC.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct UnixTime(pub u64);

/// An amount of data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Bytes(pub u64);

/// A bandwidth, bytes in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Bandwidth(pub u64);

/// Money in the price table's currency. Never NaN: prices are checked when the table is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, Serialize)]
pub struct Money(pub f64);

impl Seconds {
    /// The same time in hours, as prices want it.
    #[must_use]
    pub fn hours(self) -> f64 {
        self.0 as f64 / 3600.0
    }
}

impl UnixTime {
    /// This much later.
    #[must_use]
    pub fn after(self, d: Seconds) -> UnixTime {
        UnixTime(self.0.saturating_add(d.0))
    }

    /// How long since `earlier`; zero if the clock went back.
    #[must_use]
    pub fn since(self, earlier: UnixTime) -> Seconds {
        Seconds(self.0.saturating_sub(earlier.0))
    }
}

impl Bytes {
    /// The same amount in GiB, as prices want it.
    #[must_use]
    pub fn gib(self) -> f64 {
        self.0 as f64 / GIB
    }

    /// A number of GiB, for tables that state it so.
    #[must_use]
    pub fn from_gib(gib: f64) -> Bytes {
        Bytes((gib * GIB) as u64)
    }
}

impl Bandwidth {
    /// How long `bytes` take, rounded up. A bandwidth of nothing takes for ever.
    #[must_use]
    pub fn time_for(self, bytes: Bytes) -> Seconds {
        match (bytes.0, self.0) {
            (0, _) => Seconds(0),
            (_, 0) => Seconds(u64::MAX),
            (b, w) => Seconds(b.div_ceil(w)),
        }
    }
}

impl std::ops::Add for Seconds {
    type Output = Seconds;
    fn add(self, other: Seconds) -> Seconds {
        Seconds(self.0.saturating_add(other.0))
    }
}

impl std::iter::Sum for Bytes {
    fn sum<I: Iterator<Item = Bytes>>(all: I) -> Bytes {
        Bytes(all.fold(0, |a, b| a.saturating_add(b.0)))
    }
}

impl std::ops::AddAssign for Money {
    fn add_assign(&mut self, other: Money) {
        self.0 += other.0;
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2}", self.0)
    }
}

/// Input that makes no sense: which, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid(pub String);

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Invalid {}
