//! One forecast from a whole history: what the command line asks for, and what a controller asks for
//! when it first meets a series.

use std::num::NonZeroUsize;

use super::engine::{Forecast, Memory};
use super::scene::Scene;
use super::series::Series;

/// Days replayed to learn whom to believe. Two were as good on real series, but what happens once a day must
/// have been judged a few times before it is believed.
pub const REPLAY_DAYS: usize = 7;

/// Threads that replay one series: a week is a few milliseconds' work, and starting a thread takes a
/// tenth of one.
const MOST_THREADS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(3);

/// Forecasts the next `horizon` points of a series.
#[must_use]
pub fn forecast(series: &Series, horizon: usize) -> Forecast {
    from_nothing(Memory::new(horizon), &series.values, series.day())
}

/// The same with the fitted experts.
#[must_use]
pub fn forecast_fitted(series: &Series, horizon: usize) -> Forecast {
    from_nothing(Memory::fitted(horizon), &series.values, series.day())
}

fn from_nothing(mut memory: Memory, values: &[f64], day: usize) -> Forecast {
    let now = values.len();
    let scene = Scene::new(values, now, day);
    let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    memory.replay(&scene, now, REPLAY_DAYS * day, 0, cores.min(MOST_THREADS));
    memory.forecast(&scene, now)
}
