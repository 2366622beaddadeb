//! `forerun replica`: keep copies of a volume on other nodes.

use super::client::connect;
use super::operation::{Sending, carry_out};
use super::out::{bytes, duration, figure, text};
use super::progress::Progress;
use super::{Failure, Out, size};
use proto::v1::start_request::Command;
use proto::v1::{self, ConsistencyLevel, ListVolumesRequest, ReplicaReport, ReplicaState};
use serde::Serialize;
use std::time::Duration;

/// How often a replica that is being seeded is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// What to do with replicas.
#[derive(clap::Subcommand, Debug)]
pub enum Verb {
    /// Keep a copy on another node: seed it, then follow by increments
    Add {
        /// Of which volume
        volume: String,
        /// Where
        #[arg(long, value_name = "NODE")]
        to: String,
        /// How far it may be behind: strong, bounded=5s (or 500ms, 1m) or eventual
        #[arg(long, default_value = "bounded=5s")]
        consistency: crate::fleet::Consistency,
        /// Cap on the bandwidth that it takes, a second, for example 50M
        #[arg(long, value_parser = size::parse, value_name = "BYTES")]
        rate: Option<u64>,
        /// Return as soon as seeding has begun
        #[arg(long)]
        no_wait: bool,
        #[command(flatten)]
        sending: Sending,
    },
    /// List the replicas of a volume, or of all
    List {
        /// Of which volume
        volume: Option<String>,
    },
    /// Give a copy up and delete it; also that of a former owner
    Remove {
        /// Of which volume
        volume: String,
        /// Where
        #[arg(long, value_name = "NODE")]
        to: String,
        /// Do not wait for a node that is silent: it deletes its copy when it comes back
        #[arg(long)]
        forget_unreachable: bool,
        #[command(flatten)]
        sending: Sending,
    },
}

/// A replica as it is listed.
#[derive(Serialize)]
pub struct ReplicaRow {
    volume: String,
    node: String,
    consistency: String,
    state: String,
    epoch: u64,
    lag_bytes: u64,
    lag_ms: u64,
    seed_bytes_total: u64,
    seed_bytes_done: u64,
    seed_bytes_sent: u64,
    seed_seconds: f64,
    increments: Vec<IncrementRow>,
    trouble: String,
    #[serde(skip)]
    settled: bool,
}

/// A finished increment.
#[derive(Serialize)]
struct IncrementRow {
    epoch: u64,
    dirty_bytes: u64,
    sent_bytes: u64,
    seconds: f64,
}

fn state(r: &ReplicaReport) -> String {
    match r.state() {
        ReplicaState::Unspecified => "waiting".to_owned(),
        ReplicaState::Seeding => "seeding".to_owned(),
        ReplicaState::CatchingUp => "catching-up".to_owned(),
        ReplicaState::Consistent => format!("consistent@{}", r.epoch),
        ReplicaState::Mirroring => "mirroring".to_owned(),
    }
}

impl ReplicaRow {
    /// A replica of `volume`.
    #[must_use]
    pub fn new(volume: &str, r: v1::Replica) -> ReplicaRow {
        let report = r.report.unwrap_or_default();
        let seed = report.seed.unwrap_or_default();
        let consistency = r.consistency.unwrap_or_default();
        ReplicaRow {
            volume: volume.to_owned(),
            node: r.node,
            consistency: match consistency.level() {
                ConsistencyLevel::Strong => "strong".to_owned(),
                ConsistencyLevel::Bounded => {
                    let bound = Duration::from_millis(consistency.bound_ms);
                    crate::fleet::Consistency::Bounded(bound).to_string()
                }
                ConsistencyLevel::Eventual | ConsistencyLevel::Unspecified => "eventual".to_owned(),
            },
            state: state(&report),
            settled: matches!(
                report.state(),
                ReplicaState::Consistent | ReplicaState::Mirroring
            ),
            epoch: report.epoch,
            lag_bytes: report.lag_bytes,
            lag_ms: report.lag_ms,
            seed_bytes_total: seed.bytes_total,
            seed_bytes_done: seed.bytes_done,
            seed_bytes_sent: seed.bytes_sent,
            seed_seconds: seed.micros as f64 / 1e6,
            increments: report
                .increments
                .iter()
                .map(|i| IncrementRow {
                    epoch: i.epoch,
                    dirty_bytes: i.dirty_bytes,
                    sent_bytes: i.sent_bytes,
                    seconds: i.micros as f64 / 1e6,
                })
                .collect(),
            trouble: report.trouble,
        }
    }

    /// In a word or two.
    #[must_use]
    pub fn short(&self) -> String {
        format!("{} {}", self.node, self.state)
    }

    /// Bytes a second of the seeding so far.
    fn rate(&self) -> u64 {
        if self.seed_seconds > 0.0 {
            (self.seed_bytes_done as f64 / self.seed_seconds) as u64
        } else {
            0
        }
    }
}

/// List replicas.
pub fn table(rows: &[ReplicaRow], out: &Out) {
    out.list(
        rows,
        &[
            text("VOLUME"),
            text("NODE"),
            text("STATE"),
            text("CONSISTENCY"),
            figure("BEHIND"),
            figure(""),
            text("REMARK"),
        ],
        |r| {
            let seeding = r.seed_bytes_total > 0 && !r.settled;
            let remark = if !r.trouble.is_empty() {
                r.trouble.clone()
            } else if seeding {
                format!(
                    "{} of {}",
                    bytes(r.seed_bytes_done),
                    bytes(r.seed_bytes_total)
                )
            } else {
                String::new()
            };
            vec![
                r.volume.clone(),
                r.node.clone(),
                r.state.clone(),
                r.consistency.clone(),
                bytes(r.lag_bytes),
                duration(Duration::from_millis(r.lag_ms)),
                remark,
            ]
        },
        "No replicas. `forerun replica add VOL --to NODE` makes one.",
    );
}

/// `forerun replica ...`.
pub async fn run(verb: Verb, controller: &str, out: &Out) -> Result<(), Failure> {
    match verb {
        Verb::List { volume } => {
            table(
                &rows(volume.as_deref().unwrap_or(""), controller).await?,
                out,
            );
            Ok(())
        }
        Verb::Remove {
            volume,
            to,
            forget_unreachable,
            sending,
        } => {
            let done = format!("The replica of {volume} on {to} is gone.");
            let command = Command::RemoveReplica(v1::RemoveReplica {
                volume,
                node: to,
                forget_unreachable,
            });
            carry_out(controller, sending, command, out).await?;
            if !out.is_json() {
                out.line(done);
            }
            Ok(())
        }
        Verb::Add {
            volume,
            to,
            consistency,
            rate,
            no_wait,
            sending,
        } => {
            let command = Command::AddReplica(v1::AddReplica {
                volume: volume.clone(),
                node: to.clone(),
                consistency: Some(crate::controller::consistency(consistency)),
                rate_bytes_per_second: rate.unwrap_or(0),
            });
            carry_out(controller, sending, command, out).await?;
            if no_wait {
                return Ok(());
            }
            wait_until_consistent(&volume, &to, controller, out).await
        }
    }
}

async fn rows(volume: &str, controller: &str) -> Result<Vec<ReplicaRow>, Failure> {
    let request = ListVolumesRequest {
        volume: volume.to_owned(),
    };
    let answer = connect(controller)
        .await?
        .list_volumes(request)
        .await?
        .into_inner();
    let of = |v: v1::Volume| {
        let name = v.name;
        v.replicas
            .into_iter()
            .map(move |r| ReplicaRow::new(&name, r))
    };
    Ok(answer.volumes.into_iter().flat_map(of).collect())
}

async fn wait_until_consistent(
    volume: &str,
    node: &str,
    controller: &str,
    out: &Out,
) -> Result<(), Failure> {
    let progress = Progress::bytes(out);
    loop {
        let rows = rows(volume, controller).await?;
        let row = rows.into_iter().find(|r| r.node == node).ok_or_else(|| {
            Failure::new(format!(
                "replica of {volume} on {node}: somebody removed it meanwhile"
            ))
        })?;
        if out.is_json() {
            out.json(&row);
        } else {
            progress.at(
                &row.state,
                row.seed_bytes_done,
                row.seed_bytes_total,
                row.rate(),
            );
        }
        if row.settled {
            progress.end();
            if !out.is_json() {
                let how = match row.seed_bytes_total {
                    0 => "the copy that was there was taken up".to_owned(),
                    total => format!(
                        "{} sent for a volume of {} in {}",
                        bytes(row.seed_bytes_sent),
                        bytes(total),
                        duration(Duration::from_secs_f64(row.seed_seconds.max(0.0)))
                    ),
                };
                out.line(format!(
                    "Volume {volume} has a replica on {node}: {}, {how}.",
                    row.state
                ));
            }
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}
