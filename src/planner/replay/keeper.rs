//! Who decides which copies to keep, and two that need no plan.

use super::run::View;
use super::world::World;
use std::collections::{BTreeMap, BTreeSet};

/// Decides which copies there shall be.
pub trait Keeper {
    /// The copies wanted from this step on, as VM and site.
    fn wanted(&mut self, view: &View<'_>) -> BTreeSet<(usize, usize)>;

    /// Where a VM goes that has no copy anywhere.
    fn lands(&self, world: &World, vm: usize) -> usize {
        world.cheapest_site(vm)
    }

    /// Whether, of the VMs that could leave, those with a warm copy go first.
    fn prefers_warm(&self) -> bool {
        true
    }
}

/// Keeps nothing.
pub struct Nothing;

impl Keeper for Nothing {
    fn wanted(&mut self, _: &View<'_>) -> BTreeSet<(usize, usize)> {
        BTreeSet::new()
    }

    fn prefers_warm(&self) -> bool {
        false
    }
}

/// Keeps a copy wherever a VM has been last.
#[derive(Default)]
pub struct MostRecent(BTreeMap<usize, usize>);

impl Keeper for MostRecent {
    fn wanted(&mut self, view: &View<'_>) -> BTreeSet<(usize, usize)> {
        self.0.extend(view.away);
        self.0.iter().map(|(vm, site)| (*vm, *site)).collect()
    }
}
