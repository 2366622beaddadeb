//! What the Fleet service answers about plans and the calendar.

use super::{Planned, now};
use crate::controller::{Controller, Nodes};
use crate::planner::{Calendar, Event, Mode, Seconds};
use crate::store::{Store, Transaction};
use node::{Error, ErrorKind, Result};
use proto::v1;
use serde::Serialize;
use std::collections::BTreeMap;

const CALENDAR: &str = "calendar/";
/// Events kept that were added by call: more is a mistake in whatever adds them.
const EVENTS_MAX: usize = 10_000;
/// How far ahead the next time of an event is looked for.
const AHEAD: Seconds = Seconds(366 * 86_400);

fn json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value)
        .map_err(|e| Error::new(ErrorKind::Broken, format!("write an answer: {e}")))
}

fn invalid(why: impl Into<String>) -> Error {
    Error::new(ErrorKind::Invalid, why)
}

impl<S: Store, N: Nodes> Controller<S, N> {
    pub(in crate::controller) async fn answer_plan(
        &self,
        r: v1::PlanRequest,
    ) -> Result<v1::PlanResponse> {
        let planned: Planned = if r.apply {
            self.cycle(Some(Mode::Auto)).await?
        } else {
            self.plan_only().await?
        };
        Ok(v1::PlanResponse {
            json: json(&planned)?,
        })
    }

    pub(in crate::controller) async fn answer_review(&self) -> Result<v1::ReviewResponse> {
        self.planning()?;
        let json = json(&self.reviewed().await?)?;
        Ok(v1::ReviewResponse { json })
    }

    /// Events that were added by call.
    pub(super) async fn calendar_events(&self) -> Result<Vec<Event>> {
        let stored: BTreeMap<String, String> = self.planning_records(CALENDAR).await?;
        let mut events = Vec::new();
        for text in stored.values() {
            let parsed = Calendar::parse(text).map_err(|e| invalid(e.to_string()))?;
            events.extend(parsed.into_events());
        }
        Ok(events)
    }

    pub(in crate::controller) async fn add_events(&self, toml: &str) -> Result<()> {
        let tables: toml::Table =
            toml::from_str(toml).map_err(|e| invalid(format!("calendar: {e}")))?;
        let events = tables.get("event").and_then(toml::Value::as_array);
        let events = events.filter(|e| !e.is_empty()).ok_or_else(|| {
            invalid("calendar: no [[event]] in it; `forerun calendar add --help` shows one")
        })?;
        // all of them are checked before any is kept
        Calendar::parse(toml).map_err(|e| invalid(e.to_string()))?;
        let known = self.planning_records::<String>(CALENDAR).await?.len();
        if known + events.len() > EVENTS_MAX {
            return Err(Error::new(
                ErrorKind::NoSpace,
                format!(
                    "calendar: {known} events are kept and {EVENTS_MAX} are the most; remove some"
                ),
            ));
        }
        let mut t = Transaction::default();
        for event in events {
            let name = event
                .get("name")
                .and_then(toml::Value::as_str)
                .unwrap_or_default();
            if name.is_empty() || name.contains('/') {
                return Err(invalid(format!(
                    "calendar: {name:?} is no name for an event"
                )));
            }
            let one = toml::Table::from_iter([(
                "event".to_owned(),
                toml::Value::Array(vec![event.clone()]),
            )]);
            let text = serde_json::to_vec(&one.to_string())
                .map_err(|e| Error::new(ErrorKind::Broken, format!("keep event {name}: {e}")))?;
            t.write.push((format!("{CALENDAR}{name}"), Some(text)));
        }
        self.commit(t, Vec::new()).await?;
        Ok(())
    }

    pub(in crate::controller) async fn remove_event(&self, name: &str) -> Result<()> {
        let key = format!("{CALENDAR}{name}");
        if self.inner.records.store().get(&key).await?.is_none() {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!(
                    "remove event {name:?}: there is none that was added by command; events of the \
                     calendar file are removed there"
                ),
            ));
        }
        let mut t = Transaction::default();
        t.write.push((key, None));
        self.commit(t, Vec::new()).await?;
        Ok(())
    }

    pub(in crate::controller) async fn list_events_ahead(&self) -> Result<Vec<v1::CalendarEvent>> {
        let rules_file = self.planning()?.calendar_file()?;
        let stored = self.calendar_events().await?;
        let of = |events: Vec<Event>, from_file: bool| {
            events.into_iter().map(move |event| {
                let calendar = Calendar::of(vec![event.clone()]);
                let next = calendar.between(now(), now().after(AHEAD));
                v1::CalendarEvent {
                    next_unix: next.first().map_or(0, |o| o.start.0),
                    lasts_seconds: event.lasts.0,
                    every_seconds: event.every.map_or(0, |e| e.0),
                    probability: event.probability,
                    load: event.load,
                    kind: match event.kind {
                        crate::planner::EventKind::Maintenance => "maintenance".into(),
                        crate::planner::EventKind::Spike => "spike".into(),
                    },
                    nodes: event.nodes,
                    site: event.site.unwrap_or_default(),
                    name: event.name,
                    from_file,
                }
            })
        };
        Ok(of(rules_file, true).chain(of(stored, false)).collect())
    }
}
