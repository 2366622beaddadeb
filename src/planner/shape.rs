//! Which node to buy: the cheapest shape that is large enough at a stated quantile.

use super::distribution::Distribution;
use super::prices::{Shape, SitePrices};
use super::unit::Bytes;
use serde::Serialize;

/// What must run on a new node.
#[derive(Clone, Debug)]
pub struct Need {
    /// Virtual CPUs, over the window.
    pub cpus: Distribution,
    /// Memory, in GiB, over the window.
    pub memory_gib: Distribution,
    /// Storage: disks have sizes, not distributions.
    pub storage: Bytes,
}

/// What a node needs beside the storage to receive increments and to serve a few disks: a core, and
/// memory for the node's buffers.
const STANDBY: (f64, f64) = (1.0, 2.0);

impl Need {
    /// What a node needs that only holds copies.
    #[must_use]
    pub fn standby(storage: Bytes) -> Need {
        Need {
            cpus: Distribution::certain(STANDBY.0),
            memory_gib: Distribution::certain(STANDBY.1),
            storage,
        }
    }
}

/// A need at one quantile, and the shape that covers it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recommendation {
    /// The quantile at which the need was read.
    pub quantile: f64,
    /// CPUs at that quantile.
    pub cpus: f64,
    /// Memory at that quantile, in GiB.
    pub memory_gib: f64,
    /// Storage, in GiB.
    pub storage_gib: f64,
    /// The cheapest shape with at least that much of each.
    pub shape: Shape,
}

/// The cheapest shape that covers the need, or `None` if the site sells none so large. Of two at
/// one price the roomier, then the name that comes first: the answer must not depend on the order
/// of the table.
#[must_use]
pub fn recommend(need: &Need, site: &SitePrices, quantile: f64) -> Option<Recommendation> {
    let cpus = need.cpus.quantile(quantile);
    let memory_gib = need.memory_gib.quantile(quantile);
    let storage_gib = need.storage.gib();
    site.shapes
        .iter()
        .filter(|s| s.cpus >= cpus && s.memory_gib >= memory_gib && s.storage_gib >= storage_gib)
        .min_by(|a, b| {
            (a.hour.total_cmp(&b.hour))
                .then(b.cpus.total_cmp(&a.cpus))
                .then(b.memory_gib.total_cmp(&a.memory_gib))
                .then(a.name.cmp(&b.name))
        })
        .map(|shape| Recommendation {
            quantile,
            cpus,
            memory_gib,
            storage_gib,
            shape: shape.clone(),
        })
}

#[cfg(test)]
mod tests {
    use super::super::prices::Prices;
    use super::*;

    fn site() -> SitePrices {
        Prices::parse(
            r#"
            version = "1"
            currency = "USD"
            [sites.a]
            storage_gib_month = 0.1
            egress_gib = 0.0
            shapes = [
              { name = "large", cpus = 8, memory_gib = 32, storage_gib = 500, hour = 0.4 },
              { name = "small", cpus = 2, memory_gib = 8, storage_gib = 100, hour = 0.1 },
              { name = "medium", cpus = 4, memory_gib = 16, storage_gib = 200, hour = 0.2 },
            ]"#,
        )
        .unwrap()
        .site("a")
        .unwrap()
        .clone()
    }

    fn need(cpus: [f64; 2], storage: f64) -> Need {
        Need {
            cpus: Distribution::new([(0.5, cpus[0]), (0.95, cpus[1])]).unwrap(),
            memory_gib: Distribution::certain(6.0),
            storage: Bytes::from_gib(storage),
        }
    }

    #[test]
    fn the_quantile_decides_and_the_cheapest_that_fits_wins() {
        let name = |n: &Need, q| recommend(n, &site(), q).map(|r| r.shape.name);
        assert_eq!(name(&need([1.5, 3.5], 50.0), 0.5).as_deref(), Some("small"));
        assert_eq!(
            name(&need([1.5, 3.5], 50.0), 0.95).as_deref(),
            Some("medium")
        );
        assert_eq!(
            name(&need([1.5, 3.5], 300.0), 0.5).as_deref(),
            Some("large")
        );
        assert_eq!(name(&need([1.5, 9.0], 50.0), 0.95), None);
    }
}
