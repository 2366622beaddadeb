//! From a history to what the planner asks of it: distributions of the maximum over windows.

use crate::planner::{Distribution, Seconds, Windows};
use crate::predict::forecast;
use crate::predict::quantile::LEVELS;
use crate::predict::series::LEAST_SAMPLES;

/// Windows that are forecast, in samples.
const WINDOWS: [usize; 5] = [6, 12, 36, 96, 192];

/// Forecasts of the maximum over growing windows, or why there are none. Windows longer than what is
/// known of the past are left out: nothing of that length was ever seen.
pub(super) fn windows(values: &[f64], period: Seconds, day: Seconds) -> Result<Windows, String> {
    if values.len() < LEAST_SAMPLES {
        return Err(format!(
            "{} samples of {LEAST_SAMPLES} that a forecast needs",
            values.len()
        ));
    }
    let samples_a_day = (day.0 / period.0.max(1)).max(1) as usize;
    let lengths = WINDOWS.iter().filter(|w| **w * 2 <= values.len());
    let windows = lengths.filter_map(|steps| {
        let max = forecast::at(values, samples_a_day, *steps).window_max;
        let max = Distribution::new(LEVELS.into_iter().zip(max)).ok()?;
        Some((Seconds(*steps as u64 * period.0), max))
    });
    Ok(Windows::new(windows.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Seconds = Seconds(300);
    const DAY: Seconds = Seconds(86_400);

    #[test]
    fn a_daily_peak_is_foreseen_by_windows_that_reach_it() {
        // eight of 48 samples a day are high; now is two samples before they begin
        let day = Seconds(48 * 300);
        let past: Vec<f64> = (0..48 * 6 - 10)
            .map(|i| if i % 48 >= 40 { 0.9 } else { 0.2 })
            .collect();
        let w = windows(&past, PERIOD, day).unwrap();
        assert!(w.over(Seconds(36 * 300)).unwrap().exceed(0.8) > 0.8);
    }

    #[test]
    fn a_history_that_says_nothing_is_named_or_taken_as_it_is() {
        assert!(
            windows(&[], PERIOD, DAY)
                .unwrap_err()
                .contains("0 samples of 12")
        );
        let constant = windows(&[0.5; 100], PERIOD, DAY).unwrap();
        let max = constant.over(PERIOD).unwrap();
        assert!(max.exceed(0.6) < 0.05 && max.exceed(0.4) > 0.9);
    }
}
