//! What things cost: a TOML table with a version, so that a plan can say by which prices it was
//! made.
//!
//! ```toml
//! version = "2026-11-01"
//! currency = "USD"
//!
//! [sites.east]
//! storage_gib_month = 0.08
//! egress_gib = 0.02
//! shapes = [{ name = "small", cpus = 2, memory_gib = 8, storage_gib = 200, hour = 0.096 }]
//! ```

use super::unit::{Bytes, Invalid, Money, Seconds};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Hours in the month by which storage is sold.
const MONTH_HOURS: f64 = 730.0;

/// A price table.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Prices {
    /// Which table this is; a plan repeats it.
    pub version: String,
    /// The currency of every figure.
    pub currency: String,
    sites: BTreeMap<String, SitePrices>,
}

/// Prices at one site.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SitePrices {
    /// One GiB of storage for a month of 730 hours.
    pub storage_gib_month: f64,
    /// One GiB that leaves for this site.
    pub egress_gib: f64,
    /// The nodes that can be had, in any order.
    pub shapes: Vec<Shape>,
}

/// A kind of node that a site sells.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// The seller's name for it.
    pub name: String,
    /// Virtual CPUs.
    pub cpus: f64,
    /// Memory in GiB.
    pub memory_gib: f64,
    /// Storage that comes with it, in GiB.
    pub storage_gib: f64,
    /// Price of an hour.
    pub hour: f64,
}

impl Prices {
    /// Read a table.
    ///
    /// # Errors
    /// It is no TOML, a figure is missing, negative or no number, a site sells no node, or two
    /// shapes of a site have one name.
    pub fn parse(toml: &str) -> Result<Prices, Invalid> {
        let prices: Prices =
            toml::from_str(toml).map_err(|e| Invalid(format!("price table: {e}")))?;
        for (name, site) in &prices.sites {
            site.check()
                .map_err(|why| Invalid(format!("price table, site {name}: {why}")))?;
        }
        Ok(prices)
    }

    /// The prices of a site.
    ///
    /// # Errors
    /// The table does not have it.
    pub fn site(&self, name: &str) -> Result<&SitePrices, Invalid> {
        self.sites.get(name).ok_or_else(|| {
            Invalid(format!(
                "no prices for site {name} in table {}: add [sites.{name}]",
                self.version
            ))
        })
    }

    /// The sites that have prices.
    pub fn sites(&self) -> impl Iterator<Item = &str> {
        self.sites.keys().map(String::as_str)
    }
}

impl SitePrices {
    fn check(&self) -> Result<(), String> {
        let figures = [self.storage_gib_month, self.egress_gib];
        let of_shapes = self
            .shapes
            .iter()
            .flat_map(|s| [s.cpus, s.memory_gib, s.storage_gib, s.hour]);
        if let Some(bad) = figures
            .into_iter()
            .chain(of_shapes)
            .find(|f| !f.is_finite() || *f < 0.0)
        {
            return Err(format!("{bad} is no price or size"));
        }
        if self.shapes.is_empty() {
            return Err("no node shapes: give at least one".into());
        }
        let mut names: Vec<&str> = self.shapes.iter().map(|s| s.name.as_str()).collect();
        names.sort_unstable();
        match names.windows(2).find(|w| w[0] == w[1]) {
            Some(twice) => Err(format!("shape {} stands there twice", twice[0])),
            None => Ok(()),
        }
    }

    /// Keeping `bytes` for `hold`.
    #[must_use]
    pub fn storage(&self, bytes: Bytes, hold: Seconds) -> Money {
        Money(bytes.gib() * self.storage_gib_month * hold.hours() / MONTH_HOURS)
    }

    /// Sending `bytes` there.
    #[must_use]
    pub fn egress(&self, bytes: Bytes) -> Money {
        Money(bytes.gib() * self.egress_gib)
    }
}

impl Shape {
    /// Having the node for `hold`.
    #[must_use]
    pub fn price(&self, hold: Seconds) -> Money {
        Money(self.hour * hold.hours())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = r#"
        version = "1"
        currency = "USD"
        [sites.east]
        storage_gib_month = 7.3
        egress_gib = 0.02
        shapes = [{ name = "small", cpus = 2, memory_gib = 8, storage_gib = 200, hour = 0.1 }]
    "#;

    #[test]
    fn a_site_is_charged_by_its_own_figures() {
        let prices = Prices::parse(TABLE).unwrap();
        let east = prices.site("east").unwrap();
        assert!((east.storage(Bytes::from_gib(10.0), Seconds(3600)).0 - 0.1).abs() < 1e-9);
        assert!((east.egress(Bytes::from_gib(50.0)).0 - 1.0).abs() < 1e-9);
        assert!((east.shapes[0].price(Seconds(7200)).0 - 0.2).abs() < 1e-9);
    }

    #[test]
    fn a_site_without_prices_is_named_with_the_remedy() {
        let e = Prices::parse(TABLE).unwrap().site("west").unwrap_err();
        assert!(e.to_string().contains("add [sites.west]"), "{e}");
    }

    #[test]
    fn figures_that_are_no_prices_are_refused() {
        for (from, to) in [
            ("0.02", "-0.02"),
            ("0.02", "nan"),
            ("hour = 0.1", "hour = inf"),
            ("egress_gib = 0.02", ""),
        ] {
            assert!(Prices::parse(&TABLE.replace(from, to)).is_err(), "{to}");
        }
        let none = TABLE.replace(TABLE.lines().nth(6).unwrap(), "shapes = []");
        assert!(Prices::parse(&none).is_err());
    }
}
