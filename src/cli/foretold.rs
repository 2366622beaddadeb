//! `forerun forecast NAME`: what a running controller foresees of something in its fleet.

use super::client::connect;
use super::forecast::show;
use super::out::bytes;
use super::{Failure, Out};
use crate::predict::Told;
use proto::v1;

/// Ask the controller.
pub async fn ask(
    name: &str,
    metric: &str,
    horizon: usize,
    controller: &str,
    out: &Out,
) -> Result<(), Failure> {
    let request = v1::ForecastRequest {
        name: name.to_owned(),
        metric: metric.to_owned(),
        steps: u32::try_from(horizon).unwrap_or(u32::MAX),
    };
    let mut client = connect(controller).await?;
    let answer = client.forecast(request).await?.into_inner();
    let told: Told = serde_json::from_str(&answer.json)
        .map_err(|e| Failure::new(format!("read the controller's answer: {e}; is it newer?")))?;
    for note in &answer.notes {
        out.note(format!("{}: {note}", told.series));
    }
    if !out.is_json() {
        out.line(format!(
            "{}, {} s a step, in {}",
            told.series, told.step_seconds, answer.unit
        ));
    }
    show(&told, |value| written(value, &answer.unit), out);
    Ok(())
}

/// A value as people read it.
fn written(value: f64, unit: &str) -> String {
    match unit {
        "bytes" | "bytes/s" => bytes(value.max(0.0) as u64),
        _ => format!("{value:.2}"),
    }
}
