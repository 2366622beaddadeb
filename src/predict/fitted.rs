//! Experts that are fitted: a small ARIMA of ours, and ETS and MSTL of the crate `augurs`.
//!
//! They are asked only where a series is worth ten times the time ([`super::Memory::fitted`]): what
//! they earn and what they cost stands in `docs/forecasting.md`. All are fitted on the bent scale of
//! [`Scene`], where a burst is no outlier that owns the fit. No component is multiplicative: one made
//! an error of 10^119 of a series near zero.
//!
//! A model draws a path and its one-step errors; how errors grow with the step follows from how far
//! the model's own level went after an error in the past. Native intervals are not used: they cover 93
//! to 96% where they claim 80%.

use augurs::ets::AutoETS;
use augurs::mstl::MSTLModel;
use augurs::{Fit, Forecast, Predict};

use super::quantile;
use super::scene::{Drawn, Outlook, Scene};

/// Days that ETS sees, and MSTL: enough weeks for a season, few enough to fit in milliseconds.
const ETS_DAYS: usize = 1;
const MSTL_DAYS: usize = 7;
/// Days without which there is no daily season.
const LEAST_DAYS: usize = 3;
/// Samples without which nothing is fitted.
const LEAST: usize = 48;
/// Past errors kept as the spread.
const ERRORS: usize = 31;
/// Additive errors, any additive trend, no season.
const ADDITIVE: &str = "AZN";

/// The last `span` samples on the bent scale; nothing when they are too few or stand still.
pub fn past(scene: &Scene<'_>, now: usize, span: usize, least: usize) -> Option<Vec<f64>> {
    let past = &scene.shape[now.saturating_sub(span)..now];
    let moves = past.iter().any(|v| *v != past[0]);
    (moves && past.len() >= least.max(LEAST)).then(|| past.iter().map(|v| f64::from(*v)).collect())
}

/// What exponential smoothing with a trend expects.
pub fn ets(scene: &Scene<'_>, now: usize, horizon: usize) -> Outlook {
    let drawn = past(scene, now, ETS_DAYS * scene.day, LEAST).and_then(|past| {
        let fitted = AutoETS::new(1, ADDITIVE).ok()?.fit(&past).ok()?;
        let ahead = fitted.predict(horizon, None).ok()?;
        draw(scene, &past, ahead, &fitted.predict_in_sample(None).ok()?)
    });
    Outlook::Drawn(drawn.unwrap_or_default())
}

/// What a daily season around a smoothed trend expects.
pub fn mstl(scene: &Scene<'_>, now: usize, horizon: usize) -> Outlook {
    let least = LEAST_DAYS * scene.day;
    let drawn = past(scene, now, MSTL_DAYS * scene.day, least).and_then(|past| {
        let trend = AutoETS::new(1, ADDITIVE).ok()?.into_trend_model();
        let fitted = MSTLModel::new(vec![scene.day.max(2)], trend)
            .fit(&past)
            .ok()?;
        let ahead = fitted.predict(horizon, None).ok()?;
        draw(scene, &past, ahead, &fitted.predict_in_sample(None).ok()?)
    });
    Outlook::Drawn(drawn.unwrap_or_default())
}

fn draw(scene: &Scene<'_>, past: &[f64], ahead: Forecast, within: &Forecast) -> Option<Drawn> {
    let pairs = || past.iter().zip(&within.point);
    let errors: Vec<f64> = pairs().map(|(came, said)| came - said).collect();
    // By how much of an error the next answer moved: the model's own smoothing factor.
    let (mut moved, mut square) = (0.0, 0.0);
    for (error, said) in errors.iter().zip(within.point.windows(2)) {
        moved += error * (said[1] - said[0]);
        square += error * error;
    }
    let follow = if square > 0.0 {
        (moved / square).clamp(0.0, 1.0)
    } else {
        0.0
    };
    let growth = (0..ahead.point.len()).map(|step| (1.0 + follow * follow * step as f64).sqrt());
    drawn(scene, past, &ahead.point, growth, errors)
}

/// A path held inside what was ever seen, with a thinned sample of the errors; nothing when a fit ran
/// away.
pub fn drawn(
    scene: &Scene<'_>,
    past: &[f64],
    path: &[f64],
    growth: impl Iterator<Item = f64>,
    mut errors: Vec<f64>,
) -> Option<Drawn> {
    if errors.is_empty() || !path.iter().chain(&errors).all(|v| v.is_finite()) {
        return None;
    }
    quantile::sort(&mut errors);
    let level = |i: usize| (i as f64 + 0.5) / ERRORS as f64;
    let lowest = past.iter().copied().fold(f64::MAX, f64::min);
    let highest = past.iter().copied().fold(f64::MIN, f64::max);
    Some(Drawn {
        scale: scene.scale,
        bounds: [lowest as f32, highest as f32],
        path: path
            .iter()
            .map(|v| v.clamp(lowest, highest) as f32)
            .collect(),
        spread: growth.map(|by| (by as f32).min(1e6)).collect(),
        errors: (0..ERRORS)
            .map(|i| quantile::of_sorted(&errors, level(i)) as f32)
            .collect(),
    })
}
