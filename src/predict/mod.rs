//! Forecasts: history in, distributions out. Pure functions, no I/O, no clock, nothing of ours but
//! plain types.
//!
//! ```text
//! csv ─► series ─► scene ─► expert (analogue, smoothing, …) ─► engine ◄─ gate, conformal
//!                                                                │
//!                                   forecast, backtest, fan ◄────┘
//! writes ─► extent ─► seeding order, convergence          workload ─► requirement
//! ```
//!
//! One series, offline: [`forecast()`]. Many, every five minutes: [`cycle::cycle`] takes (key, history,
//! memory) from an iterator and hands each forecast with the next memory to a closure; a memory is
//! stored with [`Memory::to_bytes`] when the cycle says that it is worth it, and read again with
//! [`Memory::from_bytes`]. One series from within another loop, such as a simulator's: a [`Memory`] for
//! each series and horizon, and at each step
//!
//! ```text
//! scene = Scene::of(&series)                     the history up to now
//! memory.replay(&scene, now, span, 0, threads)    once, when the memory is new
//! memory.keep_up(&scene, now)                    judge what is known by now, issue what will be judged later
//! memory.forecast(&scene, now)                   quantiles of each step, of the window's maximum, paths
//! ```
//!
//! A point forecast is of no use to a planner: it asks how likely a host is to run out. So every
//! answer is a distribution, for each step and for the maximum of the window, and each is calibrated
//! against what happened after earlier answers. What was measured stands in `docs/forecasting.md`.

mod analogue;
mod arima;
pub mod backtest;
mod columns;
mod conformal;
pub mod convergence;
pub mod csv;
pub mod cycle;
pub mod engine;
mod expert;
pub mod extent;
pub mod fan;
mod fitted;
pub mod forecast;
mod gate;
pub mod quantile;
pub mod record;
pub mod requirement;
mod scene;
pub mod seeding;
pub mod series;
mod smoothing;
mod told;
mod verdict;

pub use engine::{Forecast, Memory};
pub use forecast::{forecast, forecast_fitted};
pub use scene::Scene;
pub use series::{Sample, Series, SeriesError};
pub use told::Told;
