//! Who pays for a node that is there only because copies are.
//!
//! Its price is that of all copies on it. Charged to each it closes a node that pays, charged to the
//! last one it never closes a node that does not: two copies that are each worth little keep it for
//! each other. So each pays in proportion to what it is worth without the node:
//!
//! ```text
//! share of a copy = price of the node × its worth / worth of all
//! ```
//!
//! A share is then below the worth either for all copies of a node or for none, and all come to the
//! same answer in the same cycle.

use super::unit::Money;
use std::collections::BTreeMap;

/// What copies are worth an hour, by node and subject.
#[derive(Clone, Debug, Default)]
pub(super) struct Upkeep(BTreeMap<String, BTreeMap<String, f64>>);

impl Upkeep {
    /// A subject's copy on a node is worth so much an hour without the node's price.
    pub(super) fn worth(&mut self, node: &str, subject: &str, hour: Money) {
        let tenants = self.0.entry(node.to_owned()).or_default();
        tenants.insert(subject.to_owned(), hour.0.max(0.0));
    }

    /// What a subject pays of a node's price, whose copy is worth so much an hour.
    pub(super) fn share(&self, node: &str, price: Money, subject: &str, worth: Money) -> Money {
        let tenants = self.0.get(node).into_iter().flatten();
        let others: f64 = tenants.filter(|t| t.0 != subject).map(|t| t.1).sum();
        let worth = worth.0.max(0.0);
        match worth + others {
            0.0 => price,
            all => Money(price.0 * worth / all),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn two_that_are_worth_little_do_not_keep_a_node_for_each_other() {
        let mut upkeep = Upkeep::default();
        let pays = |upkeep: &Upkeep, name: &str, worth: f64| {
            upkeep.share("n", Money(0.1), name, Money(worth)).0 < worth
        };
        upkeep.worth("n", "a", Money(0.03));
        upkeep.worth("n", "b", Money(0.06));
        assert!(!pays(&upkeep, "a", 0.03) && !pays(&upkeep, "b", 0.06));
        upkeep.worth("n", "c", Money(0.02));
        assert!(pays(&upkeep, "a", 0.03) && pays(&upkeep, "b", 0.06) && pays(&upkeep, "c", 0.02));
    }

    proptest! {
        #[test]
        fn all_come_to_one_answer_and_pay_the_price_together(
            worths in prop::collection::vec(0.001f64..1.0, 1..8), price in 0.01f64..3.0,
        ) {
            let mut upkeep = Upkeep::default();
            let names: Vec<String> = (0..worths.len()).map(|i| i.to_string()).collect();
            for (name, worth) in names.iter().zip(&worths) {
                upkeep.worth("n", name, Money(*worth));
            }
            let share = |i: usize| upkeep.share("n", Money(price), &names[i], Money(worths[i])).0;
            let paid: f64 = (0..worths.len()).map(share).sum();
            prop_assert!((paid - price).abs() < 1e-9);
            let all: f64 = worths.iter().sum();
            prop_assume!((all - price).abs() > 1e-6);
            for (i, worth) in worths.iter().enumerate() {
                prop_assert_eq!(share(i) < *worth, all > price);
            }
        }
    }
}
