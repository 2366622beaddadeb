//! A [`Memory`] as bytes: what the controller stores of a series between its cycles.
//!
//! ```text
//! version, experts, flags, horizon, issued_at, settled_to
//! 3 gates of the steps, 1 of the window        losses under two half-lives
//! 3 calibrations of the steps, 1 of the window bins, nudges, outcomes seen
//! forecasts not yet judged                     when, shares, the windows each expert named
//! ```
//!
//! Everything is little-endian; distances in time are variable-length, since most fit two bytes. What
//! comes back is what was stored, bit for bit. A record of another version or another set of experts
//! is refused, and the series is replayed as if it were new: nothing is lost but a few milliseconds.

use std::collections::VecDeque;
use std::fmt;

use super::conformal::{self, BINS, Calibration, Pace};
use super::engine::{Issued, Memory, RANGES};
use super::expert::EXPERTS;
use super::gate::Gate;
use super::quantile::K;
use super::scene::{Drawn, Outlook};

/// Changes when the meaning of a record does.
const VERSION: u8 = 2;
/// Longest horizon in a record; no forecast asks for more.
const LONGEST_HORIZON: u64 = 1 << 16;

const RECENT: u8 = 0;
const WINDOWS: u8 = 1;
const SHIFTED_WINDOWS: u8 = 2;
const PHASE: u8 = 3;
const DRAWN: u8 = 4;

/// Why a record is not a memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// It was written by another version, or for another set of experts.
    Version {
        /// The version found.
        version: u8,
        /// The number of experts found.
        experts: u8,
    },
    /// It ends too early, goes on too long, or holds what no memory holds.
    Damaged,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version { version, experts } => write!(
                f,
                "the memory of a series is of version {version} with {experts} experts, and {VERSION} with \
                 {EXPERTS} is read here: replay the series"
            ),
            Self::Damaged => write!(f, "the memory of a series is damaged: replay the series"),
        }
    }
}

impl std::error::Error for Unreadable {}

impl Memory {
    /// What is stored.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = vec![
            VERSION,
            EXPERTS as u8,
            u8::from(self.replayed) | u8::from(self.fitted) << 1,
        ];
        number(&mut out, self.horizon as u64);
        out.extend(self.issued_at.to_le_bytes());
        out.extend(self.settled_to.to_le_bytes());
        for gate in self.gates.iter().chain([&self.window_gate]) {
            let losses = gate.losses.as_flattened();
            losses.iter().for_each(|v| out.extend(v.to_le_bytes()));
        }
        for calibration in (self.calibrations.iter()).chain([&self.window_calibration]) {
            let figures = calibration.bins.iter().chain(&calibration.nudge);
            figures.for_each(|v| out.extend(v.to_le_bytes()));
            out.extend(calibration.seen.to_le_bytes());
        }
        number(&mut out, self.issued.len() as u64);
        for issued in &self.issued {
            out.extend(issued.at.to_le_bytes());
            let shares = issued
                .shares
                .iter()
                .chain([&issued.window_shares])
                .flatten();
            shares.for_each(|v| out.extend(v.to_le_bytes()));
            issued.outlooks.iter().for_each(|o| outlook(&mut out, o));
        }
        out
    }

    /// The memory that was stored.
    ///
    /// # Errors
    /// The bytes are of another version, or damaged.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Unreadable> {
        let mut from = Reader(bytes);
        let [version, experts] = from.take()?;
        if (version, usize::from(experts)) != (VERSION, EXPERTS) {
            return Err(Unreadable::Version { version, experts });
        }
        let [flags] = from.take()?;
        sound(flags < 4)?;
        let horizon = from.number(LONGEST_HORIZON)? as usize;
        let issued_at = i64::from_le_bytes(from.take()?);
        let settled_to = i64::from_le_bytes(from.take()?);
        let mut gates = [const { Gate::new() }; RANGES + 1];
        for gate in &mut gates {
            for loss in gate.losses.as_flattened_mut() {
                *loss = f64::from_le_bytes(from.take()?);
                sound(*loss >= 0.0)?;
            }
        }
        let [a, b, c, window_gate] = gates;
        let calibrations = [
            from.calibration(conformal::STEPS)?,
            from.calibration(conformal::STEPS)?,
            from.calibration(conformal::STEPS)?,
        ];
        let window_calibration = from.calibration(conformal::WINDOW)?;
        let mut issued = VecDeque::new();
        for _ in 0..from.number(horizon as u64)? {
            let next = from.issued()?;
            sound(issued.back().is_none_or(|last: &Issued| last.at < next.at))?;
            issued.push_back(next);
        }
        sound(horizon > 0 && from.0.is_empty())?;
        Ok(Self {
            horizon,
            gates: [a, b, c],
            calibrations,
            window_gate,
            window_calibration,
            issued,
            issued_at,
            settled_to,
            replayed: flags & 1 == 1,
            fitted: flags & 2 == 2,
        })
    }
}

fn sound(is: bool) -> Result<(), Unreadable> {
    if is { Ok(()) } else { Err(Unreadable::Damaged) }
}

/// Seven bits a byte, the lowest first; the highest bit says that more follow.
fn number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn outlook(out: &mut Vec<u8>, outlook: &Outlook) {
    match outlook {
        Outlook::Recent { span } => {
            out.push(RECENT);
            number(out, *span as u64);
        }
        Outlook::Windows { backs, shifts } => {
            out.push(if shifts.is_empty() {
                WINDOWS
            } else {
                SHIFTED_WINDOWS
            });
            number(out, backs.len() as u64);
            backs.iter().for_each(|back| number(out, u64::from(*back)));
            shifts.iter().for_each(|v| out.extend(v.to_le_bytes()));
        }
        Outlook::Drawn(drawn) => {
            out.push(DRAWN);
            out.extend(drawn.scale.to_le_bytes());
            number(out, drawn.path.len() as u64);
            number(out, drawn.errors.len() as u64);
            let figures = (drawn.bounds.iter().chain(&drawn.path))
                .chain(&drawn.spread)
                .chain(&drawn.errors);
            figures.for_each(|v| out.extend(v.to_le_bytes()));
        }
        Outlook::Phase { period, turns } => {
            out.push(PHASE);
            number(out, *period as u64);
            number(out, *turns as u64);
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Unreadable> {
        let (first, rest) = self.0.split_first_chunk().ok_or(Unreadable::Damaged)?;
        self.0 = rest;
        Ok(*first)
    }

    fn number(&mut self, most: u64) -> Result<u64, Unreadable> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let [byte] = self.take()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                sound(value <= most)?;
                return Ok(value);
            }
        }
        Err(Unreadable::Damaged)
    }

    fn figure(&mut self) -> Result<f32, Unreadable> {
        let value = f32::from_le_bytes(self.take()?);
        sound(value.is_finite())?;
        Ok(value)
    }

    fn figures(&mut self, count: u64) -> Result<Vec<f32>, Unreadable> {
        (0..count).map(|_| self.figure()).collect()
    }

    fn calibration(&mut self, pace: Pace) -> Result<Calibration, Unreadable> {
        let (mut bins, mut nudge) = ([0.0; BINS], [0.0; K]);
        for bin in &mut bins {
            *bin = self.figure()?;
            sound(*bin >= 0.0)?;
        }
        for step in &mut nudge {
            *step = self.figure()?;
        }
        let seen = u32::from_le_bytes(self.take()?);
        sound(bins.iter().sum::<f32>() > 0.0)?;
        Ok(Calibration::restored(bins, nudge, seen, pace))
    }

    fn issued(&mut self) -> Result<Issued, Unreadable> {
        let at = i64::from_le_bytes(self.take()?);
        let mut shares = [[0.0; EXPERTS]; RANGES + 1];
        for share in shares.as_flattened_mut() {
            *share = self.figure()?;
        }
        let [a, b, c, window_shares] = shares;
        let mut outlooks = Vec::with_capacity(EXPERTS);
        for _ in 0..EXPERTS {
            outlooks.push(self.outlook()?);
        }
        let outlooks = outlooks.try_into().map_err(|_| Unreadable::Damaged)?;
        Ok(Issued {
            at,
            shares: [a, b, c],
            window_shares,
            outlooks,
        })
    }

    fn outlook(&mut self) -> Result<Outlook, Unreadable> {
        let [kind] = self.take()?;
        let most = u64::from(u32::MAX);
        Ok(match kind {
            RECENT => Outlook::Recent {
                span: self.number(most)? as usize,
            },
            WINDOWS | SHIFTED_WINDOWS => {
                // Each takes a byte at least, so that a damaged count allocates nothing large.
                let count = self.number(self.0.len() as u64)? as usize;
                let mut backs = Vec::with_capacity(count);
                for _ in 0..count {
                    backs.push(self.number(most)? as u32);
                }
                let mut shifts = Vec::new();
                if kind == SHIFTED_WINDOWS {
                    for _ in 0..count {
                        shifts.push(self.figure()?);
                    }
                }
                Outlook::Windows { backs, shifts }
            }
            PHASE => Outlook::Phase {
                period: self.number(most)?.max(1) as usize,
                turns: self.number(most)? as usize,
            },
            DRAWN => {
                let scale = f64::from_le_bytes(self.take()?);
                sound(scale.is_finite())?;
                let steps = self.number(self.0.len() as u64)?;
                let errors = self.number(self.0.len() as u64)?;
                let bounds = [self.figure()?, self.figure()?];
                sound(bounds[0] <= bounds[1])?;
                Outlook::Drawn(Drawn {
                    scale,
                    bounds,
                    path: self.figures(steps)?,
                    spread: self.figures(steps)?,
                    errors: self.figures(errors)?,
                })
            }
            _ => return Err(Unreadable::Damaged),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::scene::Scene;
    use super::super::series::Series;
    use super::*;
    use proptest::prelude::*;
    use std::num::NonZeroUsize;

    const STEP: i64 = 300;

    /// A day's rhythm, bursts and a level shift, from `start` steps after 1970 on.
    fn series(start: i64, length: i64) -> Series {
        let value = |i: i64| {
            let burst = if (i * 7919) % 61 < 3 { 40.0 } else { 0.0 };
            10.0 + (i as f64 / 45.8).sin() + burst + if i > 2500 { 30.0 } else { 0.0 }
        };
        let samples: Vec<_> = (start..start + length)
            .map(|i| (i * STEP, value(i)))
            .collect();
        Series::from_samples(&samples).unwrap()
    }

    fn learned(series: &Series) -> Memory {
        let mut memory = Memory::new(48);
        let (scene, now) = (Scene::of(series), series.values.len());
        memory.replay(&scene, now, now, 0, NonZeroUsize::MIN);
        memory
    }

    #[test]
    fn a_restored_memory_forecasts_what_the_live_one_does() {
        let series = series(0, 3000);
        let live = learned(&series);
        let bytes = live.to_bytes();
        assert!(bytes.len() < 10_000, "{} bytes", bytes.len());
        let restored = Memory::from_bytes(&bytes).unwrap();
        assert_eq!(restored, live);
        let scene = Scene::of(&series);
        let mut fitted = Memory::fitted(48);
        fitted.replay(&scene, 3000, 200, 0, NonZeroUsize::MIN);
        assert_eq!(Memory::from_bytes(&fitted.to_bytes()), Ok(fitted));
        let (one, other) = (live.forecast(&scene, 3000), restored.forecast(&scene, 3000));
        assert_eq!(format!("{one:?}"), format!("{other:?}"));
    }

    /// The controller stores a memory only when it has issued a forecast. It is killed an hour and a
    /// half later, and its successor goes on from what was stored.
    #[test]
    fn what_a_killed_controller_had_learned_since_is_learned_again() {
        let series = series(0, 3000);
        let scene = Scene::of(&series);
        let mut live = Memory::new(48);
        let mut stored = live.to_bytes();
        for now in 2000..=2900 {
            if live.keep_up(&scene, now) {
                stored = live.to_bytes();
            }
        }
        let mut restored = Memory::from_bytes(&stored).unwrap();
        assert_ne!(restored, live, "the crash came between two issues");
        restored.keep_up(&scene, 2900);
        assert_eq!(restored, live);
    }

    /// The history holds so many days and no more: its first sample is another one in every cycle.
    #[test]
    fn a_memory_finds_its_place_in_a_history_that_moves_on() {
        let whole = series(0, 3000);
        let mut standing = Memory::new(48);
        let mut moving = standing.clone();
        for now in 2000..2400 {
            standing.keep_up(&Scene::of(&series(0, now)), now as usize);
            moving.keep_up(&Scene::of(&series(now - 1900, 1900)), 1900);
        }
        assert_eq!(standing.settled_to, moving.settled_to);
        let scene = Scene::of(&whole);
        let ahead = |memory: &Memory| memory.forecast(&scene, 2400).window_max[K / 2];
        let (one, other) = (ahead(&standing), ahead(&moving));
        assert!((one - other).abs() < 0.1 * one, "{one} and {other}");
    }

    #[test]
    fn a_clock_set_back_forgets_what_was_issued_for_later() {
        let series = series(0, 3000);
        let scene = Scene::of(&series);
        let mut memory = learned(&series);
        memory.keep_up(&scene, 3000);
        memory.keep_up(&scene, 2000);
        assert!(memory.issued.iter().all(|issued| issued.at <= 2000));
        assert_eq!(memory.settled_to, 2000);
        memory.keep_up(&scene, 3000);
        assert_eq!(memory.settled_to, 3000);
    }

    #[test]
    fn another_version_is_refused_by_name() {
        let mut bytes = Memory::new(48).to_bytes();
        bytes[0] += 1;
        let error = Memory::from_bytes(&bytes).unwrap_err();
        assert!(error.to_string().contains("version 3"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

        #[test]
        fn a_damaged_record_is_an_error_or_a_memory_that_still_forecasts(
            flips in prop::collection::vec((0usize..20_000, 1u8..), 0..4), cut in 0usize..20_000,
        ) {
            let series = series(0, 700);
            let mut bytes = learned(&series).to_bytes();
            for (at, flip) in flips {
                let length = bytes.len();
                bytes[at % length] ^= flip;
            }
            if cut < bytes.len() {
                bytes.truncate(cut);
            }
            if let Ok(mut memory) = Memory::from_bytes(&bytes) && memory.horizon < 200 {
                let scene = Scene::of(&series);
                memory.keep_up(&scene, 700);
                let forecast = memory.forecast(&scene, 700);
                prop_assert!(forecast.steps.iter().flatten().all(|q| !q.is_nan()));
            }
        }
    }
}
