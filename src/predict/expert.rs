//! The experts. The cheap ones name past windows; none of them has parameters to train, so a forecast
//! for a new series is as ready as for an old one. The last three are fitted, when a series is worth it.
//!
//! | expert | what it believes |
//! |---|---|
//! | smoothing | the level stays, and errs as it has erred (also the baseline to beat) |
//! | last-day | any value of the last 24 hours |
//! | last-hours | any value of the last three hours: right after a level shift |
//! | clock | this time of day on earlier days, exactly or give or take a step |
//! | analogue | what followed the hours most like the last one, as it was or moved to today's level |
//! | cycle | the same phase of an hourly or six-hourly job |
//! | arima, ets, mstl | what a model says that was fitted to the last days |

use super::analogue::{self, Moment, Search};
use super::arima;
use super::fitted;
use super::scene::{self, Drawn, Outlook, Scene};
use super::smoothing;

/// Number of experts in the standing pool.
pub const EXPERTS: usize = 13;

/// The place of the smoothing expert.
pub const SMOOTHING: usize = 0;

/// Their names, in the order of [`outlooks`].
pub const NAMES: [&str; EXPERTS] = [
    "smoothing",
    "last-day",
    "last-hours",
    "clock",
    "clock-wide",
    "analogue",
    "analogue-level",
    "analogue-clock",
    "hourly",
    "six-hourly",
    "arima",
    "ets",
    "mstl",
];

/// The shortest stretch worth comparing, for series with long steps.
const LEAST_WIDTH: usize = 4;

/// What the experts say at one moment.
pub struct Sight {
    /// What each expects.
    pub outlooks: [Outlook; EXPERTS],
    /// How little the past says about the present, from 0 to 1.
    pub novelty: f32,
}

/// What each expert expects after the first `now` samples, of which smoothing made `levels`; the fitted ones
/// only if asked to.
pub fn sight(
    scene: &Scene<'_>,
    now: usize,
    horizon: usize,
    fitted: bool,
    levels: &[f64],
    search: &mut Search,
) -> Sight {
    let hour = (scene.day / 24).max(1);
    let width = hour.max(LEAST_WIDTH);
    let moment = Moment {
        scene,
        now,
        horizon,
        width,
    };
    let plain = search.nearest(moment, 60);
    let by_clock = search.nearest_by_clock(moment, 3 * width, 0.3, 40);
    let fit = |model: fn(&Scene<'_>, usize, usize) -> Outlook| {
        if fitted {
            model(scene, now, horizon)
        } else {
            Outlook::Drawn(Drawn::default())
        }
    };
    let novelty = analogue::novelty(scene, now, &plain);
    let moved = at_level_of_now(scene, now, width.div_ceil(4), &plain);
    let outlooks = [
        smoothing::outlook(now, horizon, levels),
        Outlook::Recent { span: scene.day },
        Outlook::Recent { span: 3 * hour },
        Outlook::Phase {
            period: scene.day,
            turns: 14,
        },
        same_time(scene, now, 14),
        as_it_was(plain),
        moved,
        as_it_was(by_clock),
        Outlook::Phase {
            period: hour,
            turns: 60,
        },
        Outlook::Phase {
            period: 6 * hour,
            turns: 60,
        },
        fit(arima::outlook),
        fit(fitted::ets),
        fit(fitted::mstl),
    ];
    Sight { outlooks, novelty }
}

fn as_it_was(backs: Vec<u32>) -> Outlook {
    let shifts = Vec::new();
    Outlook::Windows { backs, shifts }
}

/// Moves each window by how much the mean of the last `span` samples differs from then.
fn at_level_of_now(scene: &Scene<'_>, now: usize, span: usize, backs: &[u32]) -> Outlook {
    let level = |end: usize| {
        let last = &scene.values[end.saturating_sub(span)..end];
        last.iter().sum::<f64>() / last.len() as f64
    };
    let today = level(now);
    let shifts = backs
        .iter()
        .map(|back| scene::shift(today - level(now - *back as usize)))
        .collect();
    Outlook::Windows {
        backs: backs.to_vec(),
        shifts,
    }
}

/// The windows that began at this time on each of the last `days` days, one step early, on time and
/// one step late.
pub fn same_time(scene: &Scene<'_>, now: usize, days: usize) -> Outlook {
    let mut backs = Vec::new();
    for day in 1..=days {
        for early in 0..3 {
            let back = day * scene.day + early - 1;
            if (1..=now).contains(&back) {
                backs.push(back as u32);
            }
        }
    }
    as_it_was(backs)
}
