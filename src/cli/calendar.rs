//! `forerun calendar`: events that are known beforehand.

use super::client::connect;
use super::out::{duration, text};
use super::{Failure, Out};
use proto::v1;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;

/// What to do with the calendar.
#[derive(clap::Subcommand, Debug)]
pub enum Verb {
    /// Add events from a file of [[event]] tables, or one by options
    Add(Box<Add>),
    /// List events, with the next time of each
    List,
    /// Remove an event that was added by command
    Remove {
        /// Its name
        name: String,
    },
}

/// An event. `forerun calendar add patch --kind maintenance --node a7 --at 2026-11-22T02:00:00Z
/// --lasts 2h --every 1w`
#[derive(clap::Args, Debug)]
pub struct Add {
    /// Its name; an event of that name is replaced
    #[arg(required_unless_present = "file")]
    name: Option<String>,
    /// Read events from this TOML file instead
    #[arg(long, value_name = "FILE", conflicts_with_all = ["name", "kind", "at", "lasts"])]
    file: Option<PathBuf>,
    /// maintenance (everything must be elsewhere) or spike (demand grows)
    #[arg(long, required_unless_present = "file", value_parser = ["maintenance", "spike"], hide_possible_values = true)]
    kind: Option<String>,
    /// A node that it touches; may be given several times
    #[arg(long = "node", value_name = "NODE")]
    nodes: Vec<String>,
    /// The site that it touches
    #[arg(long, conflicts_with = "nodes")]
    site: Option<String>,
    /// When it begins, with its offset: 2026-11-22T02:00:00Z
    #[arg(long, value_name = "TIME", required_unless_present = "file")]
    at: Option<String>,
    /// How long it lasts: 90s, 15m, 2h, 3d, 1w
    #[arg(long, value_name = "LENGTH", required_unless_present = "file")]
    lasts: Option<String>,
    /// How often it comes again
    #[arg(long, value_name = "LENGTH")]
    every: Option<String>,
    /// How likely it is to happen [default: 1]
    #[arg(long, value_name = "SHARE")]
    probability: Option<f64>,
    /// What a spike multiplies demand with
    #[arg(long, value_name = "FACTOR")]
    load: Option<f64>,
}

impl Add {
    /// As the calendar's file has it.
    fn toml(self) -> Result<String, Failure> {
        if let Some(path) = &self.file {
            return std::fs::read_to_string(path)
                .map_err(|e| Failure::new(format!("read {}: {e}", path.display())));
        }
        let at = self.at.unwrap_or_default();
        let at: toml::value::Datetime = at.parse().map_err(|_| {
            Failure::usage(format!(
                "--at {at:?} is no time: write 2026-11-22T02:00:00Z"
            ))
        })?;
        let mut event = toml::Table::new();
        let mut put = |key: &str, value: Option<toml::Value>| {
            if let Some(value) = value {
                event.insert(key.to_owned(), value);
            }
        };
        put("name", self.name.map(Into::into));
        put("kind", self.kind.map(Into::into));
        put("nodes", (!self.nodes.is_empty()).then(|| self.nodes.into()));
        put("site", self.site.map(Into::into));
        put("at", Some(at.into()));
        put("lasts", self.lasts.map(Into::into));
        put("every", self.every.map(Into::into));
        put("probability", self.probability.map(Into::into));
        put("load", self.load.map(Into::into));
        let all =
            toml::Table::from_iter([("event".to_owned(), vec![toml::Value::Table(event)].into())]);
        Ok(all.to_string())
    }
}

#[derive(Serialize)]
struct Row {
    name: String,
    kind: String,
    nodes: Vec<String>,
    site: String,
    next_unix: u64,
    lasts_seconds: u64,
    every_seconds: u64,
    probability: f64,
    load: f64,
    from_file: bool,
}

impl From<v1::CalendarEvent> for Row {
    fn from(e: v1::CalendarEvent) -> Row {
        Row {
            name: e.name,
            kind: e.kind,
            nodes: e.nodes,
            site: e.site,
            next_unix: e.next_unix,
            lasts_seconds: e.lasts_seconds,
            every_seconds: e.every_seconds,
            probability: e.probability,
            load: e.load,
            from_file: e.from_file,
        }
    }
}

/// `forerun calendar ...`.
pub async fn run(verb: Verb, controller: &str, out: &Out) -> Result<(), Failure> {
    match verb {
        Verb::Add(add) => {
            let toml = add.toml()?;
            let request = v1::AddCalendarEventsRequest { toml };
            connect(controller)
                .await?
                .add_calendar_events(request)
                .await?;
            said(out, "The planner knows of it from its next cycle on.");
        }
        Verb::Remove { name } => {
            let request = v1::RemoveCalendarEventRequest { name };
            connect(controller)
                .await?
                .remove_calendar_event(request)
                .await?;
            said(out, "Removed.");
        }
        Verb::List => {
            let mut client = connect(controller).await?;
            let answer = client.list_calendar(v1::ListCalendarRequest {}).await?;
            let rows: Vec<Row> = answer
                .into_inner()
                .events
                .into_iter()
                .map(Row::from)
                .collect();
            list(&rows, out);
        }
    }
    Ok(())
}

fn said(out: &Out, line: &str) {
    if out.is_json() {
        out.json(&serde_json::json!({ "done": true }));
    } else {
        out.line(line);
    }
}

fn list(rows: &[Row], out: &Out) {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.map_or(0, |d| d.as_secs());
    out.list(
        rows,
        &[
            text("EVENT"),
            text("KIND"),
            text("TOUCHES"),
            text("NEXT"),
            text("LASTS"),
            text("EVERY"),
            text("FROM"),
        ],
        |r| {
            let next = match r.next_unix {
                0 => "past".to_owned(),
                t if t <= now => "now".to_owned(),
                t => format!("in {}", duration(Duration::from_secs(t - now))),
            };
            let length = |s| duration(Duration::from_secs(s));
            vec![
                r.name.clone(),
                r.kind.clone(),
                if r.site.is_empty() {
                    r.nodes.join(", ")
                } else {
                    format!("site {}", r.site)
                },
                next,
                length(r.lasts_seconds),
                if r.every_seconds == 0 {
                    "once".to_owned()
                } else {
                    length(r.every_seconds)
                },
                if r.from_file { "file" } else { "command" }.to_owned(),
            ]
        },
        "No events. Add one with `forerun calendar add`.",
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planner::Calendar;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        add: Add,
    }

    #[test]
    fn options_make_what_a_calendar_file_has() {
        let line = "x patch --kind maintenance --node a7 --at 2026-11-22T02:00:00Z --lasts 2h \
                    --every 1w --probability 0.5";
        let toml = Line::parse_from(line.split_whitespace())
            .add
            .toml()
            .unwrap();
        let events = Calendar::parse(&toml).unwrap().into_events();
        assert_eq!(
            (events[0].name.as_str(), events[0].probability),
            ("patch", 0.5)
        );
        assert_eq!(events[0].nodes, ["a7"]);
        let bad = "x patch --kind spike --site s --at tomorrow --lasts 2h";
        let e = Line::parse_from(bad.split_whitespace())
            .add
            .toml()
            .unwrap_err();
        assert!(e.to_string().contains("no time"), "{e}");
    }
}
