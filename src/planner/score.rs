//! The provisioning score of a site: what a warm copy there is worth, less what it costs.
//!
//! ```text
//! lead  = time to have a node there + baseline bytes / bandwidth
//! P     = 1 − (1 − P(window maximum over the lead passes capacity)) × Π(1 − P(event within it))
//!           × (1 − P(a need that nothing announces within lead and hold))
//! wait  = value of a second × seconds saved + value of a move
//! score = P × (wait − host × stay) − node × hold − storage × hold − egress
//! ```
//!
//! The seconds saved are the lead itself: with a warm copy the move takes a cutover, without one it
//! takes all of it. A copy that is there already is scored by what giving it up would lose: sending it
//! again at every need, and the wait at those that would not be foreseen in time.
//!
//! ```text
//! missed = 1 − (1 − missed share × P(load)) × (1 − P(unannounced))
//! score  = P × (sending again − host × stay) + missed × wait − node × hold − storage × hold − egress
//! ```
//!
//! Every term stays visible, and [`Score::line`] prints the sum so that a person can check it.

use super::distribution::Distribution;
use super::unit::{Bandwidth, Bytes, Money, Seconds};
use serde::Serialize;
use std::fmt::Write as _;

/// Forecasts of one quantity's maximum over windows of growing length.
#[derive(Clone, Debug, Default)]
pub struct Windows(Vec<(Seconds, Distribution)>);

/// Windows that are forecast of a subject's demand, in samples.
pub const WINDOWS: [usize; 5] = [6, 12, 48, 96, 192];

impl Windows {
    /// From forecasts in any order.
    #[must_use]
    pub fn new(mut windows: Vec<(Seconds, Distribution)>) -> Windows {
        windows.sort_by_key(|w| w.0);
        Windows(windows)
    }

    /// The maximum over at least `lead`: the shortest window that covers it, else the longest there
    /// is. `None` without any forecast.
    #[must_use]
    pub fn over(&self, lead: Seconds) -> Option<&Distribution> {
        let covering = self.0.partition_point(|w| w.0 < lead);
        self.0.get(covering).or(self.0.last()).map(|w| &w.1)
    }

    /// How long the windows are, shortest first.
    pub fn lengths(&self) -> impl Iterator<Item = Seconds> + '_ {
        self.0.iter().map(|w| w.0)
    }
}

/// What a move to a site takes and costs, before any probability.
#[derive(Clone, Copy, Debug)]
pub struct Move {
    /// Time until a node is there; zero for one that is.
    pub provision: Seconds,
    /// Bytes that the site lacks: whole baselines, or what an old copy is behind.
    pub bytes: Bytes,
    /// How fast they go.
    pub bandwidth: Bandwidth,
    /// Price of the node for the hold; zero for one that is there anyway.
    pub node: Money,
    /// Price of storage for the hold.
    pub storage: Money,
    /// Price of sending the bytes.
    pub egress: Money,
    /// Price of a host for what moves, for as long as it is expected to stay.
    pub host: Money,
    /// For how long it is all paid for. What nothing announces cannot be answered later, so that it
    /// counts for as long.
    pub hold: Seconds,
    /// What giving up a copy that is there would lose; none for a new one.
    pub kept: Option<Kept>,
}

/// What giving up a copy would lose.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    /// Price of sending everything again.
    pub again: Money,
    /// Share of the needs by load that would not be foreseen in time.
    pub missed_share: f64,
}

/// How much a move is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Urgency<'a> {
    /// Forecast of the maximum over windows.
    pub windows: &'a Windows,
    /// What the maximum must not pass.
    pub capacity: f64,
    /// Share of the times at which it does that this move is needed.
    pub leaves: f64,
    /// Events ahead: how soon they begin and how likely they are.
    pub events: &'a [(Seconds, f64)],
    /// Needs a second that nothing announces, such as a node that fails.
    pub unannounced: f64,
    /// What a second without a warm copy costs.
    pub value_of_second: Money,
    /// What a move without one costs, however long it takes.
    pub value_of_move: Money,
}

/// A score with every term.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Score {
    /// Provision time and transfer time.
    pub lead: Seconds,
    /// For how long the copy is kept after that.
    pub hold: Seconds,
    /// Probability that the window maximum passes capacity within the lead.
    pub p_load: f64,
    /// Probability that an event begins within it.
    pub p_event: f64,
    /// Probability that something happens that nothing announces.
    pub p_unannounced: f64,
    /// Probability that any of these happens.
    pub p: f64,
    /// Probability that it happens and, without a copy, has to wait.
    pub missed: f64,
    /// Value of a second saved.
    pub value_of_second: Money,
    /// Value of a move that does not wait.
    pub value_of_move: Money,
    /// Price of the node over the hold.
    pub node: Money,
    /// Price of the storage over the hold.
    pub storage: Money,
    /// Price of the transfer.
    pub egress: Money,
    /// Price of running there, times the probability.
    pub host: Money,
    /// Price of sending it again that a copy which is there may save.
    pub again: Money,
    /// What the probabilities and the lead are worth.
    pub gain: Money,
    /// Gain less every cost.
    pub total: Money,
}

impl Score {
    /// Score a move. `slack` is the time until the planner looks again: what falls within it cannot
    /// be answered later. Without a forecast only events count.
    #[must_use]
    pub fn of(it: &Move, urgency: &Urgency<'_>, slack: Seconds) -> Score {
        let lead = it.provision + it.bandwidth.time_for(it.bytes);
        let horizon = lead + slack;
        let p_load = urgency
            .windows
            .over(horizon)
            .map_or(0.0, |max| urgency.leaves * max.exceed(urgency.capacity));
        let none: f64 = urgency
            .events
            .iter()
            .filter(|(begins, _)| *begins <= horizon)
            .map(|(_, p)| 1.0 - p.clamp(0.0, 1.0))
            .product();
        let p_event = 1.0 - none;
        let covered = (lead + it.hold).0 as f64;
        let p_unannounced = 1.0 - (-urgency.unannounced.max(0.0) * covered).exp();
        let p = 1.0 - (1.0 - p_load) * none * (1.0 - p_unannounced);
        let (missed, again) = match it.kept {
            None => (p, Money(0.0)),
            Some(kept) => (
                1.0 - (1.0 - kept.missed_share * p_load) * (1.0 - p_unannounced),
                kept.again,
            ),
        };
        let wait = urgency.value_of_second.0 * lead.0 as f64 + urgency.value_of_move.0;
        let gain = Money(p * again.0 + missed * wait);
        let host = Money(p * it.host.0);
        Score {
            lead,
            hold: it.hold,
            host,
            p_load,
            p_event,
            p_unannounced,
            p,
            missed,
            value_of_second: urgency.value_of_second,
            value_of_move: urgency.value_of_move,
            node: it.node,
            storage: it.storage,
            egress: it.egress,
            again,
            gain,
            total: Money(gain.0 - host.0 - it.node.0 - it.storage.0 - it.egress.0),
        }
    }

    /// The time that it covers; never none, so that it can be divided by.
    #[must_use]
    pub fn time(&self) -> Seconds {
        (self.lead + self.hold).max(Seconds(1))
    }

    /// What it is worth in each hour of it.
    #[must_use]
    pub fn hourly(&self) -> Money {
        Money(self.total.0 / self.time().hours())
    }

    /// The same with another price of the node.
    #[must_use]
    pub fn with_node(mut self, node: Money) -> Score {
        self.total.0 += self.node.0 - node.0;
        self.node = node;
        self
    }

    /// The costs together.
    #[must_use]
    pub fn cost(&self) -> Money {
        Money(self.host.0 + self.node.0 + self.storage.0 + self.egress.0)
    }

    /// The sum as one line.
    #[must_use]
    pub fn line(&self) -> String {
        let mut wait = format!("{} s saved x {:.4}/s", self.lead.0, self.value_of_second.0);
        if self.value_of_move.0 != 0.0 {
            wait = format!("({wait} + move {:.4})", self.value_of_move.0);
        }
        let mut why = format!("load {:.3}, event {:.3}", self.p_load, self.p_event);
        if self.p_unannounced > 0.0 {
            // writing to a String cannot fail, here and below
            let _ = write!(why, ", unannounced {:.3}", self.p_unannounced);
        }
        let mut line = format!("P {:.3} ({why})", self.p);
        let _ = match self.again {
            Money(0.0) => write!(line, " x {wait}"),
            again => write!(
                line,
                " x again {:.4} + missed {:.3} x {wait}",
                again.0, self.missed
            ),
        };
        let _ = write!(line, " = {:.4}", self.gain.0);
        for (cost, name) in [
            (self.host, "host"),
            (self.node, "node"),
            (self.storage, "storage"),
            (self.egress, "egress"),
        ] {
            let _ = write!(line, " - {name} {:.4}", cost.0);
        }
        let _ = write!(line, " = {:.4}", self.total.0);
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn windows(p_over_90: f64) -> Windows {
        let max = Distribution::new([(0.0, 0.0), (1.0 - p_over_90, 90.0), (1.0, 200.0)]).unwrap();
        Windows::new(vec![(Seconds(3600), max)])
    }

    fn a_move() -> Move {
        Move {
            provision: Seconds(100),
            bytes: Bytes(1_000_000),
            bandwidth: Bandwidth(10_000),
            node: Money(0.5),
            storage: Money(0.1),
            egress: Money(0.4),
            host: Money(0.5),
            hold: Seconds(0),
            kept: None,
        }
    }

    fn urgency(windows: &Windows) -> Urgency<'_> {
        Urgency {
            windows,
            capacity: 90.0,
            leaves: 1.0,
            events: &[],
            unannounced: 0.0,
            value_of_second: Money(0.05),
            value_of_move: Money(0.0),
        }
    }

    #[test]
    fn the_terms_add_up_as_by_hand() {
        let w = windows(0.2);
        let urgency = Urgency {
            events: &[(Seconds(150), 0.5), (Seconds(10_000), 1.0)],
            ..urgency(&w)
        };
        let s = Score::of(&a_move(), &urgency, Seconds(300));
        assert_eq!(s.lead, Seconds(200)); // 100 s for the node, 1 MB at 10 kB/s
        assert!((s.p_load - 0.2).abs() < 1e-9);
        assert!((s.p_event - 0.5).abs() < 1e-9); // the second event is beyond lead and slack
        assert!((s.p - 0.6).abs() < 1e-9); // 1 - 0.8 x 0.5
        assert!((s.total.0 - (0.6 * 200.0 * 0.05 - 0.6 * 0.5 - 1.0)).abs() < 1e-9);
        assert_eq!(
            s.line(),
            "P 0.600 (load 0.200, event 0.500) x 200 s saved x 0.0500/s = 6.0000 \
             - host 0.3000 - node 0.5000 - storage 0.1000 - egress 0.4000 = 4.7000"
        );
    }

    /// A VM was kept ready for every overload of its node, while another one relieved the node each time.
    #[test]
    fn an_overload_counts_as_often_as_it_drives_this_one_out() {
        let w = windows(0.2);
        let p_load = |leaves: f64| {
            let urgency = Urgency {
                leaves,
                ..urgency(&w)
            };
            Score::of(&a_move(), &urgency, Seconds(300)).p_load
        };
        assert!((p_load(1.0) - 0.2).abs() < 1e-9 && (p_load(0.25) - 0.05).abs() < 1e-9);
    }

    #[test]
    fn a_score_an_hour_is_over_lead_and_hold_and_another_node_changes_the_sum_alone() {
        let w = windows(0.2);
        let it = Move {
            hold: Seconds(3400),
            ..a_move()
        };
        let s = Score::of(&it, &urgency(&w), Seconds(300));
        assert_eq!(s.time(), Seconds(3600));
        assert_eq!(s.hourly(), s.total);
        let dearer = s.clone().with_node(Money(0.75));
        assert!((s.total.0 - dearer.total.0 - 0.25).abs() < 1e-9);
        assert!((dearer.gain.0 - dearer.cost().0 - dearer.total.0).abs() < 1e-9);
    }

    #[test]
    fn without_a_forecast_events_still_count() {
        let none = Windows::default();
        let urgency = Urgency {
            events: &[(Seconds(0), 1.0)],
            ..urgency(&none)
        };
        let s = Score::of(&a_move(), &urgency, Seconds(300));
        assert_eq!((s.p_load, s.p), (0.0, 1.0));
    }

    /// A copy for a need that nothing announces has to be there before; one for what a forecast
    /// announces in time is only worth its sending.
    #[test]
    fn a_copy_that_is_there_is_worth_its_sending_and_the_waits_that_nothing_foresees() {
        let w = windows(0.2);
        let kept = Move {
            kept: Some(Kept {
                again: Money(2.0),
                missed_share: 0.5,
            }),
            hold: Seconds(800),
            node: Money(0.0),
            storage: Money(0.1),
            egress: Money(0.0),
            host: Money(0.0),
            ..a_move()
        };
        let urgency = Urgency {
            unannounced: 1e-4,
            value_of_second: Money(0.01),
            value_of_move: Money(3.0),
            ..urgency(&w)
        };
        let s = Score::of(&kept, &urgency, Seconds(800));
        let unannounced = 1.0 - (-0.1f64).exp(); // 1000 s of lead and hold
        assert!((s.p_unannounced - unannounced).abs() < 1e-9);
        let p = 1.0 - 0.8 * (1.0 - unannounced);
        let missed = 1.0 - 0.9 * (1.0 - unannounced);
        let by_hand = p * 2.0 + missed * (200.0 * 0.01 + 3.0) - 0.1;
        assert!((s.total.0 - by_hand).abs() < 1e-9, "{}", s.line());
        assert!(
            s.line()
                .contains("x again 2.0000 + missed 0.186 x (200 s saved x 0.0100/s + move 3.0000)"),
            "{}",
            s.line()
        );
        let announced = Score::of(
            &kept,
            &Urgency {
                unannounced: 0.0,
                ..urgency
            },
            Seconds(800),
        );
        assert!(announced.total.0 < s.total.0);
    }

    #[test]
    fn the_shortest_window_that_covers_the_lead_is_asked() {
        let w = Windows::new(vec![
            (Seconds(60), Distribution::certain(1.0)),
            (Seconds(600), Distribution::certain(2.0)),
        ]);
        let max = |s| w.over(Seconds(s)).unwrap().quantile(0.5);
        assert_eq!((max(60), max(61), max(9_999)), (1.0, 2.0, 2.0));
    }

    proptest! {
        #[test]
        fn more_urgent_never_scores_less_and_dearer_never_more(
            p in 0.01f64..0.9, more in 0.0f64..0.09, price in 0.0f64..10.0, extra in 0.0f64..10.0,
            event in prop::option::of((0u64..1000, 0.0f64..=1.0)),
        ) {
            let events: Vec<_> = event.into_iter().map(|(s, p)| (Seconds(s), p)).collect();
            let score = |p, price| {
                let w = windows(p);
                let it = Move { node: Money(price), ..a_move() };
                let u = Urgency { events: &events, ..urgency(&w) };
                Score::of(&it, &u, Seconds(300))
            };
            let base = score(p, price);
            prop_assert!(score(p + more, price).total.0 >= base.total.0 - 1e-9);
            prop_assert!(score(p, price + extra).total.0 <= base.total.0 + 1e-9);
            prop_assert!((0.0..=1.0).contains(&base.p));
            prop_assert!(base.p >= base.p_load.max(base.p_event) - 1e-9);
            prop_assert!((base.gain.0 - base.cost().0 - base.total.0).abs() < 1e-9);
        }
    }
}
