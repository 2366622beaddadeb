//! What comes of one series of the history, for whoever asks.
//!
//! Of a node's processors and memory, over the windows that plans look at, it is what the plan goes by: forecast
//! from what its cycles learned. All else is learned from the last week when it is asked for.

use super::ingest::{of_node, of_vm, of_volume};
use super::outlook;
use super::{Planning, now};
use crate::controller::{Controller, Nodes};
use crate::history::{Kept, Key, Metric, Span};
use crate::planner::WINDOWS;
use crate::predict::cycle::{self, Task};
use crate::predict::{Sample, Series, Told};
use crate::store::Store;
use node::{Error, ErrorKind, NodeName, Result, VolumeName};
use proto::v1;

/// Longest look ahead: beyond it the analogues of a month's history are too few.
const LONGEST: u32 = 2016;

/// The kinds of what is measured, as a name may begin with.
const KINDS: [&str; 3] = ["volume/", "vm/", "node/"];

impl<S: Store, N: Nodes> Controller<S, N> {
    pub(in crate::controller) async fn answer_forecast(
        &self,
        r: v1::ForecastRequest,
    ) -> Result<v1::ForecastResponse> {
        let planning = self.inner.planning.as_ref().ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                format!(
                    "forecast {}: this controller keeps no history: give its configuration a [planning] \
                     table, or forecast a file with --history FILE.csv",
                    r.name
                ),
            )
        })?;
        if !(1..=LONGEST).contains(&r.steps) {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "forecast {}: {} steps ahead: ask for 1 to {LONGEST}",
                    r.name, r.steps
                ),
            ));
        }
        let machine = self.measured(planning, &r.name).await?;
        let metric = metric_of(planning.kept(), &machine, &r)?;
        planning.foretell(Key { machine, metric }, r.steps).await
    }

    /// Whose history a name means.
    async fn measured(&self, planning: &Planning, name: &str) -> Result<String> {
        let is_measured = |machine: &String| !planning.kept().metrics(machine).is_empty();
        let is_full = |kind: &&str| name.strip_prefix(*kind).is_some_and(|n| !n.is_empty());
        let found = if KINDS.iter().any(is_full) {
            let machine = name.to_owned();
            is_measured(&machine).then_some(machine)
        } else {
            let volume = match name.parse::<VolumeName>() {
                Ok(volume) => self.inner.records.volume(&volume).await?,
                Err(_) => None, // a VM may have a name that no volume has
            };
            let node = match name.parse::<NodeName>() {
                Ok(node) => self.inner.records.node(&node).await?,
                Err(_) => None,
            };
            let volume = volume.map(|_| of_volume(name));
            let vm = Some(of_vm(name)).filter(is_measured);
            volume.or(vm).or(node.map(|_| of_node(name)))
        };
        found.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!(
                    "forecast {name}: there is no volume, no node and no measured VM of that name; \
                     `forerun volume list` and `forerun node-list` show what there is"
                ),
            )
        })
    }
}

/// What is asked of a machine.
fn metric_of(kept: &Kept, machine: &str, r: &v1::ForecastRequest) -> Result<Metric> {
    let metric = match r.metric.as_str() {
        "" if machine.starts_with(KINDS[0]) => Some(Metric::DiskWrite),
        "" => Some(Metric::Cpu),
        name => Metric::from_name(name),
    };
    let known = kept.metrics(machine);
    metric.filter(|m| known.contains(m)).ok_or_else(|| {
        let names: Vec<&str> = known.iter().map(|m| m.name()).collect();
        let (asked, what) = match metric {
            Some(metric) => (metric.name(), "it was not measured yet"),
            None => (r.metric.as_str(), "there is no such metric"),
        };
        let known = match names.is_empty() {
            true => "nothing was; its node has to send heartbeats".to_owned(),
            false => format!("there is {}", names.join(", ")),
        };
        Error::new(
            ErrorKind::NotFound,
            format!("forecast {asked} of {machine}: {what}; {known}"),
        )
    })
}

impl Planning {
    async fn foretell(&self, key: Key, steps: u32) -> Result<v1::ForecastResponse> {
        let step = u32::try_from(self.config.period_seconds).unwrap_or(u32::MAX);
        let day = u32::try_from(self.config.day_seconds).unwrap_or(u32::MAX);
        let last = now().0 as i64 / i64::from(step) * i64::from(step);
        let span = Span {
            from: last - self.kept_seconds(),
            to: last,
            step,
        };
        let (kept, learned) = (self.kept().clone(), self.learned.clone());
        let asked = format!("{}, {}", key.machine, key.metric.name());
        let broken = |e| Error::new(ErrorKind::Broken, format!("forecast {asked}: {e}"));
        let unit = key.metric.unit().to_owned();
        let named = asked.clone();
        let (node, mut notes) = self.planned_for(&key, steps);
        let looked = tokio::task::spawn_blocking(move || -> Result<_> {
            let samples = samples(&kept, span, &key)?;
            let mut series = Series::up_to(&samples, step, last).map_err(|e| {
                Error::new(
                    ErrorKind::NotFound,
                    format!("forecast {named}: {e}; a sample comes every {step} s"),
                )
            })?;
            series.day_seconds = day;
            let horizon = steps as usize;
            let memory = match node {
                Some(node) => outlook::learned(&learned, &node, key.metric, horizon)?,
                None => None,
            };
            let repaired = series.notes;
            let foreseen = cycle::one(Task {
                key,
                history: series,
                memory,
                horizon,
            });
            let age = samples.last().map_or(0, |(at, _)| last - at);
            Ok((Told::of(&named, step, &foreseen.forecast), repaired, age))
        });
        let (told, repaired, age) = looked.await.map_err(|e| broken(e.to_string()))??;
        notes.extend(repaired.sentence());
        if age > i64::from(step) {
            notes.push(format!(
                "the newest sample is {age} s old, and is taken for what has been since"
            ));
        }
        Ok(v1::ForecastResponse {
            json: serde_json::to_string(&told).map_err(|e| broken(e.to_string()))?,
            unit,
            notes,
        })
    }
}

impl Planning {
    /// The node whose plan looks at this over a window of so many steps; and what there is to say where a plan
    /// looks otherwise.
    fn planned_for(&self, key: &Key, steps: u32) -> (Option<String>, Vec<String>) {
        let node = key.machine.strip_prefix(KINDS[2]);
        let Some(node) = node.filter(|_| matches!(key.metric, Metric::Cpu | Metric::Memory)) else {
            return (None, Vec::new());
        };
        let word = key.metric.name();
        let mut files = self.config.series.iter();
        if files.any(|s| s.node == node && s.metric == word) {
            let note = format!("plans go by a file in place of what {node} says of its {word}");
            return (None, vec![note]);
        }
        if WINDOWS.contains(&(steps as usize)) {
            return (Some(node.to_owned()), Vec::new());
        }
        let windows = WINDOWS.map(|w| w.to_string()).join(", ");
        let note = format!("plans look {windows} steps ahead; this was learned from the last week");
        (None, vec![note])
    }
}

fn samples(kept: &Kept, span: Span, wanted: &Key) -> Result<Vec<Sample>> {
    let mut found = kept.walk(span, |key| key == wanted)?;
    found.next().map_or(Ok(Vec::new()), |found| Ok(found?.1))
}
