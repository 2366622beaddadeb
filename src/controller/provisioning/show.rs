//! Provisioning for people: its operations in the same words as those of volumes.

use crate::provision::{Kind, Operation, Progress, Stage, Step};
use proto::v1;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// What was said last of each running operation and of each node that is being emptied. A word of
/// progress, lost with the controller.
#[derive(Clone, Default)]
pub(in crate::controller) struct Latest(Arc<Mutex<BTreeMap<String, String>>>);

impl Latest {
    pub fn say(&self, about: &str, text: String) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(about.to_owned(), text);
    }

    fn said(&self, o: &Operation) -> String {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let leaving = all
            .get(o.leaving())
            .filter(|_| o.next() == Some(Step::Drain));
        leaving.or(all.get(&o.id)).cloned().unwrap_or_default()
    }

    pub fn forget(&self, o: &Operation) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(&o.id);
        all.remove(o.leaving());
    }
}

pub(in crate::controller) fn verb(kind: &Kind) -> &'static str {
    match kind {
        Kind::Grow => "provision grow",
        Kind::Retire => "provision retire",
        Kind::Resize { .. } => "provision resize",
    }
}

pub(super) fn words(p: &Progress) -> String {
    match p {
        Progress::Planned { resource, action } => format!("will {action} {resource}"),
        Progress::Started { resource } => format!("begins {resource}"),
        Progress::Note { resource, text } => format!("{resource}: {text}"),
        Progress::Finished { resource, seconds } => format!("{resource} done in {seconds} s"),
        Progress::Errored { resource } => format!("{resource} went wrong"),
        Progress::Retrying { text } => format!("trying again: {text}"),
    }
}

fn step(o: &Operation, step: Step) -> String {
    match step {
        Step::Apply => format!("make node {} at {}", o.node, o.site),
        Step::Register => format!("wait for {} to register", o.node),
        Step::Seed => format!("seed {}", o.volumes.join(", ")),
        Step::CutOver => format!("cut over to {}", o.node),
        Step::Drain => format!("empty {}", o.leaving()),
        Step::Destroy => format!("destroy {}", o.leaving()),
    }
}

/// An operation as those of volumes look.
pub(in crate::controller) fn operation(o: &Operation, latest: &Latest) -> v1::Operation {
    let state = match o.stage {
        Stage::Running | Stage::Undoing => v1::OperationState::Running,
        Stage::Done => v1::OperationState::Done,
        Stage::Failed => v1::OperationState::Failed,
    };
    let running = state == v1::OperationState::Running;
    let steps = (o.steps().iter().enumerate()).map(|(i, s)| v1::Step {
        name: step(o, *s),
        done: i < o.done,
    });
    let error = o.error.clone().unwrap_or_default();
    let waiting = match (&o.stage, error.is_empty()) {
        (Stage::Undoing, _) => format!("undoing: {error}"),
        (_, false) => format!("trying again: {error}"),
        (_, true) => latest.said(o),
    };
    v1::Operation {
        id: o.id.clone(),
        verb: verb(&o.kind).to_owned(),
        volume: String::new(),
        node: o.node.clone(),
        state: state.into(),
        steps: steps.collect(),
        error: if running { String::new() } else { error },
        started_unix_ms: o.started * 1000,
        ended_unix_ms: o.ended.unwrap_or(0) * 1000,
        cutover: None,
        waiting: if running { waiting } else { String::new() },
    }
}
