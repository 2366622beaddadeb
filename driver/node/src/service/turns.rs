//! Whose turn it is: a call of the controller's that a later one has overtaken is refused.
//!
//! A controller that is killed leaves calls behind. The kernel goes on sending what was in its sockets, for
//! minutes if the network holds it up, and a node may carry such a call out when a successor has long gone
//! on. So each call has a turn that was drawn before the record was looked at that it acts on:
//!
//! ```text
//!   controller, life 3                                          node
//!   draw (3, 17) ─► look ─► start the replica on n2 (3, 17) ── held up ─────────┐
//!   controller, life 4                                                          │
//!   draw (4, 1) ─► look ─► log ─► stop the replica on n2 (4, 1) ─► done         │
//!                                                       (3, 17): refused  ◄─────┘
//! ```
//!
//! The life is durable, here and at the controller. The numbers within a life are not: a process that ends
//! takes its sockets with it, and what an earlier call of this life was.

use block::{Error, ErrorKind, Result, VolumeName};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// The header that carries a call's turn.
pub const TURN: &str = "forerun-turn";

/// Volumes whose last call is remembered one by one: more than a node is told about in a controller's life.
/// Beyond it the oldest calls are remembered together.
const VOLUMES_MAX: usize = 16 << 10;

/// The place of a call among all calls of a controller and of those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Turn {
    /// Which life of the controller: each is higher than the one before.
    pub life: u64,
    /// Which call in it.
    pub number: u64,
}

impl fmt::Display for Turn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.life, self.number)
    }
}

impl FromStr for Turn {
    type Err = Error;
    fn from_str(s: &str) -> Result<Turn> {
        let numbers = s.split_once('/');
        let parsed = numbers.and_then(|(life, number)| {
            Some(Turn {
                life: life.parse().ok()?,
                number: number.parse().ok()?,
            })
        });
        parsed.ok_or_else(|| {
            Error::new(
                ErrorKind::Invalid,
                format!("{TURN} {s:?}: it is LIFE/NUMBER"),
            )
        })
    }
}

/// The turns that a node has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Turns {
    life: u64,
    /// The last call of this life about each volume, also about one that is not here any more.
    last: BTreeMap<VolumeName, u64>,
    /// The last call about any other.
    others: u64,
}

impl Turns {
    /// Those of a node that has seen `life` and has just started.
    #[must_use]
    pub fn since(life: u64) -> Turns {
        Turns {
            life,
            ..Turns::default()
        }
    }

    /// The highest life seen.
    #[must_use]
    pub fn life(&self) -> u64 {
        self.life
    }

    /// Refuse a call about `volume` that was overtaken.
    pub fn check(&self, volume: &VolumeName, turn: Turn) -> Result<()> {
        let number = self.last.get(volume).copied().unwrap_or(self.others);
        let last = Turn {
            life: self.life,
            number,
        };
        if turn > last {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Timeout,
            format!(
                "a command about {volume} came too late: it has turn {turn}, and one of turn {last} was here \
                 before; repeat it if it is still wanted"
            ),
        ))
    }

    /// Remember a call that was not refused. A new life must be durable by now.
    pub fn take(&mut self, volume: &VolumeName, turn: Turn) {
        if turn.life > self.life {
            *self = Turns::since(turn.life);
        }
        self.last.insert(volume.clone(), turn.number);
        if self.last.len() > VOLUMES_MAX {
            let oldest = self.last.iter().min_by_key(|(_, n)| **n);
            if let Some((name, number)) = oldest.map(|(name, n)| (name.clone(), *n)) {
                self.last.remove(&name);
                self.others = self.others.max(number);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn turn(life: u64, number: u64) -> Turn {
        Turn { life, number }
    }

    /// A killed controller's order to keep a replica arrived after its successor had removed that: the owner
    /// sent to a node that had deleted its copy, and tracked for it, for ever.
    #[test]
    fn what_was_overtaken_is_refused_and_what_was_not_is_not() {
        let (v, w) = ("v".parse().unwrap(), "w".parse().unwrap());
        let mut turns = Turns::since(2);
        let mut call = |name: &VolumeName, turn| {
            let checked = turns.check(name, turn);
            if checked.is_ok() {
                turns.take(name, turn);
            }
            checked.is_ok()
        };
        assert!(!call(&v, turn(1, 900)), "a life before the one on record");
        assert!(call(&v, turn(3, 17)));
        assert!(call(&w, turn(3, 16)), "another volume has turns of its own");
        assert!(!call(&v, turn(3, 16)) && !call(&v, turn(3, 17)));
        assert!(call(&v, turn(4, 1)), "a new life begins with low numbers");
        assert!(!call(&w, turn(3, 18)), "and ends the one before for all");
        assert!(call(&v, turn(4, 2)));
    }

    proptest! {
        /// Of the calls about a volume those that are carried out come in the order of their turns, however
        /// few volumes are remembered one by one.
        #[test]
        fn calls_are_carried_out_in_order(
            calls in prop::collection::vec((0u64..3, 0u64..40, 0u8..4), 1..200)
        ) {
            let mut turns = Turns::default();
            let mut done: BTreeMap<u8, Turn> = BTreeMap::new();
            for (life, number, volume) in calls {
                let (name, turn) = (format!("v{volume}").parse().unwrap(), turn(life, number));
                if turns.check(&name, turn).is_ok() {
                    turns.take(&name, turn);
                    prop_assert!(done.insert(volume, turn).is_none_or(|before| before < turn));
                }
                prop_assert_eq!(turn.to_string().parse::<Turn>().unwrap(), turn);
            }
        }
    }
}
