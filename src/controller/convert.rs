//! Between the interface's messages and the fleet's types. Everything that comes in is checked here;
//! behind this line every name is a valid name.

use super::records::Event;
use crate::fleet::{Command, Consistency, Operation, State, Volume};
use node::{Error, ErrorKind, Result, VolumeId};
use proto::v1::{self, start_request};
use std::time::Duration;

/// A command from a request; `id` becomes a new volume's identity.
pub fn command(request: Option<start_request::Command>, id: VolumeId) -> Result<Command> {
    use start_request::Command as C;
    let missing = || {
        Error::new(
            ErrorKind::Invalid,
            "the request names no command that this controller knows; is the client newer?",
        )
    };
    Ok(match request.ok_or_else(missing)? {
        C::CreateVolume(c) => Command::Create {
            volume: c.volume.parse()?,
            id,
            size_bytes: c.size_bytes,
            node: if c.node.is_empty() {
                None
            } else {
                Some(c.node.parse()?)
            },
        },
        C::ImportVolume(c) => {
            let volume = c.volume.parse()?;
            if !c.path.starts_with('/') {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    format!(
                        "volume import {volume}: {:?} is no absolute path on the node",
                        c.path
                    ),
                ));
            }
            Command::Import {
                volume,
                id,
                node: c.node.parse()?,
                path: c.path,
            }
        }
        C::DeleteVolume(c) => Command::Delete {
            volume: c.volume.parse()?,
            forget_unreachable: c.forget_unreachable,
        },
        C::ResizeVolume(c) => Command::Resize {
            volume: c.volume.parse()?,
            size_bytes: c.size_bytes,
        },
        C::AddReplica(c) => Command::AddReplica {
            volume: c.volume.parse()?,
            node: c.node.parse()?,
            consistency: consistency(c.consistency.unwrap_or_default())?,
            rate_bytes_per_second: c.rate_bytes_per_second,
        },
        C::RemoveReplica(c) => Command::RemoveReplica {
            volume: c.volume.parse()?,
            node: c.node.parse()?,
            forget_unreachable: c.forget_unreachable,
        },
        C::Cutover(c) => Command::Cutover {
            volume: c.volume.parse()?,
            to: c.to.parse()?,
        },
        C::Failover(c) => Command::Failover {
            volume: c.volume.parse()?,
            to: if c.to.is_empty() {
                None
            } else {
                Some(c.to.parse()?)
            },
            owner_is_off: c.owner_is_off,
            target_is_off: c.target_is_off,
        },
        C::GrowNode(_) | C::RetireNode(_) | C::ResizeNode(_) => {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "make or destroy a node: this is no command about a volume",
            ));
        }
    })
}

fn consistency(c: v1::Consistency) -> Result<Consistency> {
    match c.level() {
        v1::ConsistencyLevel::Strong => Ok(Consistency::Strong),
        v1::ConsistencyLevel::Eventual => Ok(Consistency::Eventual),
        // Through the text, whose rules are the rules.
        v1::ConsistencyLevel::Bounded => Consistency::Bounded(Duration::from_millis(c.bound_ms))
            .to_string()
            .parse(),
        v1::ConsistencyLevel::Unspecified => Err(Error::new(
            ErrorKind::Invalid,
            "the request names no consistency; use strong, bounded=5s or eventual",
        )),
    }
}

/// An operation for those who watch.
pub fn operation(o: &Operation) -> v1::Operation {
    let state = match o.state {
        State::Running | State::Undoing => v1::OperationState::Running,
        State::Done => v1::OperationState::Done,
        State::Failed => v1::OperationState::Failed,
    };
    let steps = o.steps.iter().enumerate().map(|(i, s)| v1::Step {
        name: s.name.clone(),
        done: i < o.done,
    });
    v1::Operation {
        id: o.id.to_string(),
        verb: o.command.verb().to_owned(),
        volume: o.command.volume().to_string(),
        node: o
            .command
            .node()
            .map(ToString::to_string)
            .unwrap_or_default(),
        state: state.into(),
        steps: steps.collect(),
        error: o.error.clone().unwrap_or_default(),
        started_unix_ms: o.started,
        ended_unix_ms: o.ended.unwrap_or_default(),
        cutover: o.cutover.map(|c| v1::CutoverProgress {
            phase: v1::CutoverPhase::Done.into(),
            frozen_micros: c.frozen_micros,
            converge_micros: c.converge_micros,
            generation: c.generation,
            ..Default::default()
        }),
        waiting: String::new(),
    }
}

/// An event for those who read.
pub fn event(e: Event) -> v1::Event {
    v1::Event {
        sequence: e.sequence,
        unix_ms: e.unix_ms,
        kind: e.kind,
        volume: e.volume,
        node: e.node,
        text: e.text,
    }
}

/// A volume's record with its owner's last report, if there is one.
pub fn volume(
    v: &Volume,
    said: Option<(v1::VolumeReport, Duration)>,
    owner_alive: bool,
) -> v1::Volume {
    let (report, age) = said.unwrap_or((v1::VolumeReport::default(), Duration::MAX));
    let trouble = if report.trouble.is_empty() && !owner_alive {
        format!("node {} sends no heartbeats", v.owner)
    } else {
        report.trouble
    };
    let replicas = v.replicas.iter().map(|r| v1::Replica {
        node: r.node.to_string(),
        consistency: Some(super::nodes::consistency(r.consistency)),
        report: report
            .replicas
            .iter()
            .find(|p| p.node == r.node.as_str())
            .cloned(),
    });
    v1::Volume {
        name: v.name.to_string(),
        id: v.id.to_string(),
        size_bytes: v.size_bytes,
        owner: v.owner.to_string(),
        generation: v.generation,
        status: v.status.to_string(),
        replicas: replicas.collect(),
        former: v.former.iter().map(ToString::to_string).collect(),
        io: report.io,
        epoch: report.epoch,
        report_age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
        trouble,
    }
}
