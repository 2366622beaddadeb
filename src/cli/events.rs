//! `forerun events`: what happened.

use super::client::connect;
use super::{Failure, Out};
use proto::v1::{Event, ListEventsRequest};
use serde::Serialize;

/// Which events.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Only of this volume
    volume: Option<String>,
    /// How many of the latest
    #[arg(long, default_value_t = 50)]
    limit: u32,
    /// Go on with what comes
    #[arg(long, short)]
    follow: bool,
}

#[derive(Serialize)]
struct Row {
    sequence: u64,
    unix_ms: u64,
    kind: String,
    volume: String,
    node: String,
    text: String,
}

impl From<Event> for Row {
    fn from(e: Event) -> Row {
        Row {
            sequence: e.sequence,
            unix_ms: e.unix_ms,
            kind: e.kind,
            volume: e.volume,
            node: e.node,
            text: e.text,
        }
    }
}

/// `forerun events`. One line an event, in JSON too: it may never end.
pub async fn run(args: Args, controller: &str, out: &Out) -> Result<(), Failure> {
    let request = ListEventsRequest {
        volume: args.volume.unwrap_or_default(),
        limit: args.limit,
        follow: args.follow,
    };
    let mut stream = connect(controller)
        .await?
        .list_events(request)
        .await?
        .into_inner();
    while let Some(event) = stream.message().await? {
        let row = Row::from(event);
        if out.is_json() {
            out.json(&row);
        } else {
            out.line(format!(
                "{}  {:<18} {}",
                utc(row.unix_ms),
                row.kind,
                row.text
            ));
        }
    }
    Ok(())
}

/// A moment as `2026-11-21 19:30:05Z`.
fn utc(unix_ms: u64) -> String {
    let seconds = unix_ms / 1000;
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Years that begin in March, so that the leap day comes last: 146,097 days are 400 of them.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{date:02} {:02}:{:02}:{:02}Z",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

#[cfg(test)]
mod tests {
    use super::utc;

    #[test]
    fn moments_read_as_dates() {
        assert_eq!(utc(0), "1970-01-01 00:00:00Z");
        assert_eq!(utc(951_782_400_000), "2000-02-29 00:00:00Z");
        assert_eq!(utc(1_735_689_599_000), "2024-12-31 23:59:59Z");
        assert_eq!(utc(1_795_289_405_000), "2026-11-21 19:30:05Z");
    }
}
