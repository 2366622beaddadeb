//! Commands as operations: sent with an id of their own, so that a repetition is the same command,
//! and followed to their end.

use super::client::connect;
use super::out::{bytes, duration, text};
use super::progress::Progress;
use super::{Failure, Out};
use proto::v1::fleet_client::FleetClient;
use proto::v1::start_request::Command;
use proto::v1::{self, CutoverPhase, CutoverProgress, Operation, OperationState};
use serde::Serialize;
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// How often a command whose answer was lost is sent again, and the pause before.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);

/// How a command is sent.
#[derive(clap::Args, Debug, Default)]
pub struct Sending {
    /// Id of the operation; a command repeated with its id is carried out once
    #[arg(long, value_name = "ID")]
    operation_id: Option<String>,
}

/// What to do with operations.
#[derive(clap::Subcommand, Debug)]
pub enum Verb {
    /// List the latest operations
    List {
        /// Only those that have not ended
        #[arg(long)]
        running: bool,
    },
    /// Follow an operation to its end
    Watch {
        /// Its id
        id: String,
    },
}

#[derive(Serialize)]
struct Row {
    id: String,
    command: String,
    volume: String,
    node: String,
    state: &'static str,
    steps_done: usize,
    steps: Vec<String>,
    waiting: String,
    error: String,
    started_unix_ms: u64,
    ended_unix_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    cutover: Option<CutoverRow>,
}

#[derive(Serialize)]
struct CutoverRow {
    phase: &'static str,
    bytes_left: u64,
    dirty_bytes_per_second: u64,
    send_bytes_per_second: u64,
    eta_ms: u64,
    frozen_ms: f64,
    converge_seconds: f64,
    generation: u64,
    note: String,
}

impl From<&Operation> for Row {
    fn from(o: &Operation) -> Row {
        Row {
            id: o.id.clone(),
            command: o.verb.clone(),
            volume: o.volume.clone(),
            node: o.node.clone(),
            state: state(o),
            steps_done: o.steps.iter().filter(|s| s.done).count(),
            steps: o.steps.iter().map(|s| s.name.clone()).collect(),
            waiting: o.waiting.clone(),
            error: o.error.clone(),
            started_unix_ms: o.started_unix_ms,
            ended_unix_ms: o.ended_unix_ms,
            cutover: o.cutover.as_ref().map(CutoverRow::from),
        }
    }
}

impl From<&CutoverProgress> for CutoverRow {
    fn from(p: &CutoverProgress) -> CutoverRow {
        CutoverRow {
            phase: phase(p.phase()),
            bytes_left: p.bytes_left,
            dirty_bytes_per_second: p.dirty_bytes_per_second,
            send_bytes_per_second: p.send_bytes_per_second,
            eta_ms: p.eta_ms,
            frozen_ms: p.frozen_micros as f64 / 1e3,
            converge_seconds: p.converge_micros as f64 / 1e6,
            generation: p.generation,
            note: p.note.clone(),
        }
    }
}

fn state(o: &Operation) -> &'static str {
    match o.state() {
        OperationState::Running => "running",
        OperationState::Done => "done",
        OperationState::Failed => "failed",
        OperationState::Unspecified => "unknown",
    }
}

fn phase(p: CutoverPhase) -> &'static str {
    match p {
        CutoverPhase::Unspecified => "waiting",
        CutoverPhase::Prepare => "preparing",
        CutoverPhase::Converge => "converging",
        CutoverPhase::Freeze => "freezing",
        CutoverPhase::Relinquish => "relinquishing",
        CutoverPhase::Activate => "activating",
        CutoverPhase::Redirect => "redirecting",
        CutoverPhase::Done => "done",
    }
}

/// Send a command and follow it to its end. The operation as it ended, if it succeeded.
pub async fn carry_out(
    controller: &str,
    sending: Sending,
    command: Command,
    out: &Out,
) -> Result<Operation, Failure> {
    let operation_id = match sending.operation_id {
        Some(id) => id,
        None => crate::identity::draw()?.to_string(),
    };
    let request = v1::StartRequest {
        operation_id: operation_id.clone(),
        command: Some(command),
    };
    let mut client = connect(controller).await?;
    let mut attempt = 1;
    loop {
        let begun = client.start(request.clone()).await;
        let lost = match begun {
            // it may be one that was under way already
            Ok(begun) => match follow(&mut client, &begun.into_inner().id, out).await {
                Ok(operation) => return ended(operation),
                Err(status) => status,
            },
            Err(status) => status,
        };
        // The command is logged once however often it is sent: sending it again is always safe.
        if !is_lost(&lost) || attempt == ATTEMPTS {
            return Err(if is_lost(&lost) {
                Failure::new(format!(
                    "the controller at {controller} went away ({}). If it had taken the command it \
                     finishes it when it is back: forerun operation watch {operation_id}",
                    lost.message()
                ))
            } else {
                lost.into()
            });
        }
        attempt += 1;
        tokio::time::sleep(PAUSE).await;
    }
}

fn is_lost(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Unknown)
}

fn ended(operation: Operation) -> Result<Operation, Failure> {
    if operation.state() == OperationState::Failed {
        return Err(Failure::new(format!(
            "{} {} failed: {}",
            operation.verb,
            about(&operation),
            operation.error
        )));
    }
    Ok(operation)
}

/// What an operation is about: a volume, or else a node.
fn about(o: &Operation) -> &str {
    if o.volume.is_empty() {
        &o.node
    } else {
        &o.volume
    }
}

async fn follow(
    client: &mut FleetClient<Channel>,
    id: &str,
    out: &Out,
) -> Result<Operation, Status> {
    let request = v1::WatchRequest {
        operation_id: id.to_owned(),
    };
    let mut stream = client.watch(request).await?.into_inner();
    let progress = Progress::words(out);
    let mut last: Option<Operation> = None;
    while let Some(operation) = stream.message().await? {
        let news = last.as_ref().is_none_or(|l| l.waiting != operation.waiting);
        if out.is_json() {
            out.json(&Row::from(&operation));
        } else if progress.is_seen() {
            progress.say(words(&operation));
        } else if news && !operation.waiting.is_empty() {
            // whoever reads a log wants to know why nothing happens
            out.note(words(&operation));
        }
        last = Some(operation);
    }
    progress.end();
    last.filter(|o| o.state() != OperationState::Running)
        .ok_or_else(|| Status::unavailable("the operation's stream ended before the operation"))
}

/// What an operation is doing, in a line.
fn words(o: &Operation) -> String {
    let what = format!("{} {}", o.verb, about(o));
    if !o.waiting.is_empty() {
        // of a node's life it is what happens to it
        let is_of_node = o.volume.is_empty();
        let waits = if is_of_node { "" } else { "waiting: " };
        return format!("{what}: {waits}{}", o.waiting);
    }
    if let Some(p) = &o.cutover {
        return format!("{what}: {}", cutover_words(p));
    }
    match o.steps.iter().find(|s| !s.done) {
        Some(step) => format!("{what}: {}", step.name),
        None => what,
    }
}

fn cutover_words(p: &CutoverProgress) -> String {
    let mut words = phase(p.phase()).to_owned();
    if p.phase() == CutoverPhase::Converge {
        words.push_str(&format!(
            ": {} left, guest writes {}/s, link carries {}/s",
            bytes(p.bytes_left),
            bytes(p.dirty_bytes_per_second),
            bytes(p.send_bytes_per_second)
        ));
    } else if p.bytes_left > 0 {
        words.push_str(&format!(": {} left", bytes(p.bytes_left)));
    }
    if p.eta_ms > 0 {
        words.push_str(&format!(
            ", about {}",
            duration(Duration::from_millis(p.eta_ms))
        ));
    }
    if !p.note.is_empty() {
        words.push_str(&format!(" ({})", p.note));
    }
    words
}

/// `forerun operation ...`.
pub async fn run(verb: Verb, controller: &str, out: &Out) -> Result<(), Failure> {
    let mut client = connect(controller).await?;
    match verb {
        Verb::Watch { id } => {
            let operation = ended(follow(&mut client, &id, out).await?)?;
            if !out.is_json() {
                out.line(format!("{} {}: done", operation.verb, about(&operation)));
            }
        }
        Verb::List { running } => {
            let request = v1::ListOperationsRequest {
                running_only: running,
                limit: 0,
            };
            let answer = client.list_operations(request).await?.into_inner();
            let rows: Vec<Row> = answer.operations.iter().map(Row::from).collect();
            let columns = [
                text("OPERATION"),
                text("COMMAND"),
                text("VOLUME"),
                text("NODE"),
                text("STATE"),
                text(""),
            ];
            out.list(
                &rows,
                &columns,
                |r| {
                    let step = r.steps.get(r.steps_done).filter(|_| r.state == "running");
                    let remark = [&r.error, &r.waiting]
                        .into_iter()
                        .find(|s| !s.is_empty())
                        .or(step);
                    vec![
                        r.id.clone(),
                        r.command.clone(),
                        r.volume.clone(),
                        r.node.clone(),
                        r.state.to_owned(),
                        remark.cloned().unwrap_or_default(),
                    ]
                },
                "No operations.",
            );
        }
    }
    Ok(())
}
