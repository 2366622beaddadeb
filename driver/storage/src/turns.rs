//! How many reads past the page cache the disk has at a time.
//!
//! Most disks work on many requests side by side, and the more they have the better. A virtual machine's
//! disk may do them one after the other and answer them together, when it has nothing left to do; what
//! joins meanwhile is answered with the rest. If it gets all there is, disk and guests wait for each other.
//! If it gets half, it works while guests deal with the other half:
//!
//! ```text
//! all at once   disk    ━━━━━━━━━━━━━━━━        ━━━━━━━━━━━━━━━━        ━━━━━━━━
//!               guests                  ━━━━━━━━                ━━━━━━━━
//!
//! in halves     disk    ━━━━━━━━ ━━━━━━━━ ━━━━━━━━ ━━━━━━━━ ━━━━━━━━ ━━━━━━━━
//!               guests           ━━━━     ━━━━     ━━━━     ━━━━     ━━━━
//! ```
//!
//! Which kind a disk is cannot be seen from its answers: those of a quick parallel disk come close
//! together as well. So it is tried. A trial lets periods with everything and periods in halves follow each
//! other and compares how many reads end in a second:
//!
//! ```text
//! rest ──► all │ halves │ all │ halves │ all │ halves │ all ──► verdict ──► rest, twice as long as the
//!               └──────── each between two others ───┘                      last if nothing changed
//! ```
//!
//! A guest that does not keep the disk busy reads as much either way, and its disk gets everything at once.

use block::Nanos;
use std::time::Duration;

/// With fewer reads at a time there is nothing to halve.
const DEEP: usize = 4;
/// Turns after which it is counted anew how many reads guests have at a time.
const LOOKS: u32 = 64;
/// A period lasts until so many times the reads that guests have at a time have ended.
const ROUNDS: usize = 8;
/// A trial's periods, the odd ones in halves.
const PERIODS: usize = 7;
/// Guests that need longer for a period of [`ROUNDS`] have stopped in between: it says nothing.
const PERIOD_MAX: Duration = Duration::from_millis(200);
/// Rest after a trial that changed something, and the longest.
const REST: Duration = Duration::from_millis(100);
const REST_MAX: Duration = Duration::from_secs(16);
/// What halves must gain to be begun.
const BEGIN: f64 = 1.10;
/// What they may lose before they are ended. Where they help, guests and disk stay out of step for a while
/// without them too, which makes a trial's other periods better than what would last.
const END: f64 = 0.85;
/// It saves more processor than it costs time to wait for all of so many reads, if they are no longer than
/// this on average. Longer ones are worth sending one by one.
const MANY: usize = 8;
const SHORT_BYTES: usize = 16 << 10;

/// Says how many reads the disk may have.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    /// Reads that the disk has, and their bytes.
    flying: usize,
    flying_bytes: usize,
    /// Reads that have ended in this turn.
    landed: usize,
    /// The most that guests had asked for at a time: in the last [`LOOKS`] turns that brought reads, and
    /// so far since.
    peaks: [usize; 2],
    looks: u32,
    /// What the last trial found better.
    halves: bool,
    rest: Duration,
    rest_until: Nanos,
    trial: Option<Trial>,
}

/// A comparison under way.
#[derive(Debug)]
struct Trial {
    since: Nanos,
    landed: usize,
    /// Reads a second of the periods that are over.
    rates: [f64; PERIODS],
    over: usize,
}

impl Turns {
    /// Whether the disk may have one more read now.
    pub(crate) fn admits(&self) -> bool {
        !self.in_halves() || self.flying < self.peak().div_ceil(2).max(1)
    }

    /// The disk gets one more.
    pub(crate) fn started(&mut self, bytes: usize) {
        self.flying += 1;
        self.flying_bytes += bytes;
    }

    /// One has ended.
    pub(crate) fn landed(&mut self, bytes: usize) {
        self.flying -= 1;
        self.flying_bytes -= bytes;
        self.landed += 1;
    }

    /// All that the shard was woken for is known, and `held` reads wait to be admitted.
    pub(crate) fn look(&mut self, now: Nanos, held: usize) {
        let landed = std::mem::take(&mut self.landed);
        if landed == 0 {
            return;
        }
        self.looks += 1;
        if self.looks == LOOKS {
            self.looks = 0;
            self.peaks = [self.peaks[1], 0];
        }
        self.peaks[1] = self.peaks[1].max(self.flying + held + landed);
        let peak = self.peak();
        match &mut self.trial {
            None if peak >= DEEP && now >= self.rest_until => {
                self.trial = Some(Trial::new(now));
            }
            None => {}
            Some(trial) => {
                trial.landed += landed;
                let verdict = trial.period(now, peak, self.halves);
                if let Some(halves) = verdict {
                    self.conclude(now, halves);
                }
            }
        }
    }

    /// How many reads are worth waiting for together: short ones, and many, that end with one another.
    pub(crate) fn together(&self) -> usize {
        let short = self.flying_bytes <= self.flying * SHORT_BYTES;
        if self.in_halves() && short && self.flying >= MANY {
            self.flying
        } else {
            0
        }
    }

    fn peak(&self) -> usize {
        self.peaks[0].max(self.peaks[1])
    }

    fn in_halves(&self) -> bool {
        match &self.trial {
            Some(trial) => trial.over % 2 == 1,
            None => self.halves,
        }
    }

    fn conclude(&mut self, now: Nanos, halves: bool) {
        self.rest = if halves == self.halves {
            (self.rest * 2).clamp(REST, REST_MAX)
        } else {
            REST
        };
        self.rest_until = now + self.rest;
        self.halves = halves;
        self.trial = None;
    }
}

impl Trial {
    fn new(now: Nanos) -> Trial {
        Trial {
            since: now,
            landed: 0,
            rates: [0.0; PERIODS],
            over: 0,
        }
    }

    /// End the period if it is over, and the trial with the last: `Some` says whether halves are better,
    /// `standing` if it cannot be said.
    fn period(&mut self, now: Nanos, peak: usize, standing: bool) -> Option<bool> {
        let took = now.since(self.since);
        if took > PERIOD_MAX || peak < DEEP {
            return Some(standing && peak >= DEEP);
        }
        if self.landed < ROUNDS * peak || took.is_zero() {
            return None;
        }
        self.rates[self.over] = self.landed as f64 / took.as_secs_f64();
        self.over += 1;
        self.since = now;
        self.landed = 0;
        (self.over == PERIODS).then(|| self.favours_halves(standing))
    }

    /// By the middle one of the comparisons: one that a scheduler disturbed decides nothing.
    fn favours_halves(&self, standing: bool) -> bool {
        let mut gains: [f64; PERIODS / 2] = std::array::from_fn(|i| {
            let [all, halves, all_again] = [2 * i, 2 * i + 1, 2 * i + 2].map(|p| self.rates[p]);
            halves / f64::midpoint(all, all_again)
        });
        gains.sort_by(f64::total_cmp);
        gains[gains.len() / 2] >= if standing { END } else { BEGIN }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    /// How a simulated disk works; times in nanoseconds.
    #[derive(Clone, Copy, Debug)]
    enum Kind {
        /// One read after the other, answered together when none is left.
        Serial { each: u64 },
        /// All side by side, but no two end closer together than `gap`.
        Parallel { latency: u64, gap: u64 },
    }

    const VIRTUAL: Kind = Kind::Serial { each: 5_000 };
    const NVME: Kind = Kind::Parallel {
        latency: 80_000,
        gap: 1_000,
    };

    /// Guests that keep `depth` reads going, and a disk. They deal with all answers that there are, each of
    /// which takes them `guest`, and then ask again.
    struct World {
        kind: Kind,
        guest: u64,
        turns: Turns,
        now: u64,
        /// When reads are asked for, and when the disk ends some.
        asks: VecDeque<u64>,
        ends: VecDeque<u64>,
        held: usize,
        guest_free: u64,
        ended: usize,
    }

    impl World {
        fn new(kind: Kind, depth: usize, guest: u64) -> World {
            World {
                kind,
                guest,
                turns: Turns::default(),
                now: 0,
                asks: vec![0; depth].into(),
                ends: VecDeque::new(),
                held: 0,
                guest_free: 0,
                ended: 0,
            }
        }

        fn submit(&mut self) {
            self.turns.started(4096);
            match self.kind {
                Kind::Serial { each } => {
                    let end = self.ends.back().map_or(self.now, |end| *end) + each;
                    self.ends.push_back(end);
                    self.ends.iter_mut().for_each(|e| *e = end);
                }
                Kind::Parallel { latency, gap } => {
                    let after_last = self.ends.back().map_or(0, |end| end + gap);
                    self.ends.push_back(after_last.max(self.now + latency));
                }
            }
        }

        /// The shard's next turn.
        fn turn(&mut self) {
            let next = self.asks.front().into_iter().chain(self.ends.front()).min();
            self.now = *next.expect("a read is somewhere");
            while self.asks.pop_front_if(|at| *at <= self.now).is_some() {
                if self.held == 0 && self.turns.admits() {
                    self.submit();
                } else {
                    self.held += 1;
                }
            }
            let mut answered = 0;
            while self.ends.pop_front_if(|at| *at <= self.now).is_some() {
                self.turns.landed(4096);
                self.ended += 1;
                answered += 1;
            }
            if answered > 0 {
                self.guest_free = self.guest_free.max(self.now) + answered * self.guest;
                self.asks.extend((0..answered).map(|_| self.guest_free));
            }
            self.turns.look(Nanos(self.now), self.held);
            while self.held > 0 && self.turns.admits() {
                self.held -= 1;
                self.submit();
            }
        }

        /// Reads that end in so many milliseconds.
        fn run(&mut self, ms: u64) -> usize {
            let (until, before) = (self.now + ms * 1_000_000, self.ended);
            while self.now < until {
                self.turn();
            }
            self.ended - before
        }

        /// The same without anybody who decides.
        fn undecided(kind: Kind, depth: usize, guest: u64, ms: u64) -> usize {
            let mut world = World::new(kind, depth, guest);
            world.turns.rest_until = Nanos(u64::MAX);
            world.run(ms)
        }
    }

    #[test]
    fn a_disk_that_answers_all_together_gets_half_and_guests_read_more() {
        let mut world = World::new(VIRTUAL, 32, 4_000);
        world.run(50);
        assert!(world.turns.halves);
        let all = World::undecided(VIRTUAL, 32, 4_000, 500);
        let decided = world.run(500);
        assert!(decided > all * 3 / 2, "{decided} of {all}");
    }

    #[test]
    fn a_parallel_disk_gets_everything_and_trials_cost_it_next_to_nothing() {
        for guest in [500, 2_000, 4_000] {
            let mut world = World::new(NVME, 32, guest);
            let decided = world.run(20_000);
            assert!(!world.turns.halves);
            let all = World::undecided(NVME, 32, guest, 20_000);
            assert!(decided > all * 99 / 100, "{decided} of {all}");
        }
    }

    #[test]
    fn guests_that_do_not_keep_the_disk_busy_are_let_alone() {
        let mut world = World::new(VIRTUAL, 32, 100_000);
        world.run(1_000);
        assert!(!world.turns.halves);
        let mut world = World::new(VIRTUAL, DEEP - 1, 4_000);
        world.run(1_000);
        assert!(world.turns.trial.is_none() && world.turns.rest_until == Nanos::ZERO);
    }

    #[test]
    fn a_disk_that_becomes_parallel_gets_everything_again() {
        let mut world = World::new(VIRTUAL, 32, 4_000);
        world.run(100);
        assert!(world.turns.halves);
        world.kind = NVME;
        world.run(3 * REST.as_millis() as u64);
        assert!(!world.turns.halves);
    }

    #[test]
    fn a_pause_within_a_trial_decides_nothing() {
        let mut world = World::new(VIRTUAL, 32, 4_000);
        world.run(50);
        assert!(world.turns.halves);
        while world.turns.trial.is_none() {
            world.turn();
        }
        let resumed = world.now + 30 * 1_000_000_000;
        world.asks.iter_mut().for_each(|at| *at = resumed);
        world.ends.iter_mut().for_each(|at| *at = resumed);
        while world.turns.trial.is_some() {
            world.turn();
        }
        assert!(world.turns.halves);
    }

    proptest! {
        #[test]
        fn reads_are_held_only_while_the_disk_has_some(
            serial in any::<bool>(),
            disk in 100u64..200_000,
            guest in 0u64..100_000,
            depth in 1usize..80,
        ) {
            let kind = if serial {
                Kind::Serial { each: disk }
            } else {
                Kind::Parallel { latency: disk, gap: disk / 40 }
            };
            let mut world = World::new(kind, depth, guest);
            for _ in 0..20_000 {
                world.turn();
                prop_assert!(world.held == 0 || world.turns.flying > 0);
                prop_assert_eq!(world.turns.flying, world.ends.len());
                prop_assert_eq!(world.held + world.ends.len() + world.asks.len(), depth);
            }
        }
    }
}
