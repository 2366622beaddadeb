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
//! A point forecast is of no use to a planner: it asks how likely a host is to run out. So every
//! answer is a distribution, for each step and for the maximum of the window, and each is calibrated
//! against what happened after earlier answers. What was measured stands in `docs/forecasting.md`.

mod analogue;
pub mod backtest;
mod conformal;
pub mod convergence;
pub mod csv;
pub mod engine;
mod expert;
pub mod extent;
pub mod fan;
pub mod forecast;
mod gate;
pub mod quantile;
pub mod scene;
pub mod seeding;
pub mod series;
mod smoothing;

pub use engine::{Forecast, Memory};
pub use forecast::forecast;
pub use series::{Sample, Series, SeriesError};
