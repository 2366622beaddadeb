//! A forecast as people and programs are told it: the quantiles that are asked for, by their names.

use super::{Forecast, quantile};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Levels told of each step, and of the window's maximum.
const STEPS: [(&str, f64); 11] = [
    ("0.025", 0.025),
    ("0.1", 0.1),
    ("0.2", 0.2),
    ("0.3", 0.3),
    ("0.4", 0.4),
    ("0.5", 0.5),
    ("0.6", 0.6),
    ("0.7", 0.7),
    ("0.8", 0.8),
    ("0.9", 0.9),
    ("0.975", 0.975),
];
const WINDOW: [(&str, f64); 3] = [("0.5", 0.5), ("0.9", 0.9), ("0.95", 0.95)];

/// What is foreseen of one series.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Told {
    /// Which.
    pub series: String,
    /// Seconds from one step to the next.
    pub step_seconds: u32,
    /// For each level the values of all steps.
    pub quantiles: BTreeMap<String, Vec<f64>>,
    /// The maximum over all steps, by level.
    pub window_max: BTreeMap<String, f64>,
    /// The expert with the largest share.
    pub chosen: String,
}

impl Told {
    /// Of a forecast.
    #[must_use]
    pub fn of(series: &str, step_seconds: u32, forecast: &Forecast) -> Told {
        let step = |level: f64| {
            let steps = forecast.steps.iter();
            steps.map(|step| quantile::at(step, level)).collect()
        };
        let most = |level| quantile::at(&forecast.window_max, level);
        let named = |name: &str| name.to_owned();
        Told {
            series: named(series),
            step_seconds,
            quantiles: STEPS.iter().map(|(n, l)| (named(n), step(*l))).collect(),
            window_max: WINDOW.iter().map(|(n, l)| (named(n), most(*l))).collect(),
            chosen: named(forecast.chosen),
        }
    }
}
