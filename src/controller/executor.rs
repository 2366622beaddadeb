//! Carries operations out: log, then step after step, each with its record in one transaction.
//!
//! A node that does not answer is asked again until it does; a node that refuses ends the operation,
//! and what was done is undone by steps of the same kind.

use super::nodes::{Nodes, Request, call_for};
use super::records::{
    Happening, Read, expect_no_operation, expect_no_volume, forget_left, put_left, put_operation,
    put_volume,
};
use super::{Controller, convert, unix_ms};
use crate::fleet::{
    Answer, Command, Effect, Left, Operation, OperationId, State, Status, View, Volume, apply,
    plan, undo,
};
use crate::predict::convergence::Convergence;
use crate::store::{Store, Transaction};
use node::service::Turn;
use node::{Error, ErrorKind, Result, VolumeName};
use proto::v1::{self, CutoverPhase, CutoverProgress};
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How often a command is planned anew because another changed the record under it.
const PLAN_ATTEMPTS: usize = 16;
/// Pause before a node that did not answer is asked again. An arriving node cuts it short.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MOST: Duration = Duration::from_secs(5);

/// An operation under way, for those who watch.
pub(super) struct Live(watch::Sender<v1::Operation>);

/// What came of a step's commit.
enum Advance {
    /// On to the next.
    Next(Box<Operation>),
    /// Somebody else carried it out.
    Lost,
}

impl<S: Store, N: Nodes> Controller<S, N> {
    /// Log a command and begin it; a repeated one answers as it stands.
    pub async fn begin(&self, id: OperationId, command: Command) -> Result<Operation> {
        for _ in 0..PLAN_ATTEMPTS {
            if let Some(known) = self.inner.records.operation(&id).await? {
                return repeated(known.record, &command);
            }
            if let Some(operation) = self.log(&id, &command).await? {
                self.drive(operation.clone());
                return Ok(operation);
            }
        }
        Err(Error::new(
            ErrorKind::Busy,
            format!(
                "{} {}: others keep changing the volume; try again",
                command.verb(),
                command.volume()
            ),
        ))
    }

    /// Plan and write to the log; `None` if the record changed meanwhile.
    async fn log(&self, id: &OperationId, command: &Command) -> Result<Option<Operation>> {
        let read = self.inner.records.volume(command.volume()).await?;
        let nodes = self.node_views().await?;
        let busy = read.as_ref().and_then(|r| r.record.operation.as_ref());
        let running = match busy {
            Some(id) => self.inner.records.operation(id).await?,
            None => None,
        };
        let copies = read.as_ref().map(|r| self.said_of_copies(&r.record));
        let mut left = self.inner.records.left().await?;
        left.retain(|l| read.as_ref().is_some_and(|r| r.record.id == l.id));
        let view = View {
            volume: read.as_ref().map(|r| &r.record),
            nodes: &nodes,
            running: running.as_ref().map(|r| &r.record),
            left: &left,
            copies: copies.as_deref().unwrap_or_default(),
        };
        let plan = plan(id, command, &view)?;
        let operation = Operation {
            id: id.clone(),
            command: command.clone(),
            state: State::Running,
            steps: plan.steps,
            done: 0,
            error: None,
            started: unix_ms(),
            ended: None,
            cutover: None,
        };
        let mut t = Transaction::default();
        match &read {
            Some(r) => r.expect(&mut t),
            None => expect_no_volume(&mut t, command.volume()),
        }
        expect_no_operation(&mut t, id);
        put_volume(&mut t, command.volume(), Some(&plan.volume))?;
        put_operation(&mut t, &operation)?;
        if let Command::AddReplica { node, .. } = command {
            let wanted = left.iter().filter(|l| l.node == *node);
            wanted.for_each(|l| forget_left(&mut t, l));
        }
        let mut happenings = Vec::new();
        if let Some(replaced) = running.filter(|r| plan.instead_of.as_ref() == Some(&r.record.id)) {
            let mut ended = replaced.record.clone();
            let why = format!("{} takes its place", described(command));
            ended.error = Some(match ended.error.take() {
                None => why,
                Some(first) => format!("{first}. {why}"),
            });
            happenings.push(end(&mut ended));
            replaced.expect(&mut t);
            put_operation(&mut t, &ended)?;
        }
        happenings.push(happening(
            &operation,
            "operation-begun",
            format!("{} begun", described(command)),
        ));
        Ok(self.commit(t, happenings).await?.then_some(operation))
    }

    /// Commit, and tell those who follow the events.
    pub(super) async fn commit(&self, t: Transaction, happenings: Vec<Happening>) -> Result<bool> {
        let Some(events) = self.inner.records.commit(t, unix_ms(), happenings).await? else {
            return Ok(false);
        };
        for event in events {
            let _ = self.inner.events.send(event); // nobody follows: nobody to tell
        }
        Ok(true)
    }

    /// An event that no record goes with; `node` is empty where it is about none.
    pub(super) async fn announce(
        &self,
        kind: &'static str,
        node: &str,
        text: String,
    ) -> Result<()> {
        let happening = Happening {
            kind,
            node: node.to_owned(),
            volume: String::new(),
            text,
        };
        self.commit(Transaction::default(), vec![happening]).await?;
        Ok(())
    }

    /// Carry an operation out in the background.
    pub(super) fn drive(&self, operation: Operation) {
        let (sender, _) = watch::channel(convert::operation(&operation));
        live(&self.inner.live).insert(operation.id.clone(), Live(sender));
        let controller = self.clone();
        tokio::spawn(async move {
            let id = operation.id.clone();
            controller.run(operation).await;
            live(&controller.inner.live).remove(&id);
        });
    }

    /// Follow an operation: the channel ends when it is no longer carried out here.
    pub(super) fn follow(&self, id: &OperationId) -> Option<watch::Receiver<v1::Operation>> {
        live(&self.inner.live).get(id).map(|l| l.0.subscribe())
    }

    fn show(&self, id: &OperationId, change: impl FnOnce(&mut v1::Operation)) {
        if let Some(Live(sender)) = live(&self.inner.live).get(id) {
            sender.send_modify(change);
        }
    }

    async fn run(&self, mut operation: Operation) {
        let mut pause = RETRY_FIRST;
        while operation.is_running() {
            match self.step(&operation).await {
                Ok(Advance::Next(next)) => {
                    self.show(&next.id, |o| *o = convert::operation(&next));
                    operation = *next;
                    pause = RETRY_FIRST;
                }
                Ok(Advance::Lost) => {
                    tracing::warn!(id = %operation.id, "another controller carries the operation out");
                    return;
                }
                Err(e) => {
                    tracing::info!(id = %operation.id, "{e}; asking again");
                    self.show(&operation.id, |o| o.waiting = e.to_string());
                    tokio::select! {
                        biased;
                        () = self.inner.arrival.notified() => {}
                        () = self.inner.nodes.pause(pause) => {}
                    }
                    pause = (pause * 2).min(RETRY_MOST);
                }
            }
        }
    }

    /// Do the next step. An error means that it is to be tried again.
    async fn step(&self, known: &Operation) -> Result<Advance> {
        let turn = self.draw();
        let records = &self.inner.records;
        let (Some(o), Some(v)) = (
            records.operation(&known.id).await?,
            records.volume(known.command.volume()).await?,
        ) else {
            return Ok(Advance::Lost);
        };
        if o.record != *known || v.record.operation.as_ref() != Some(&known.id) {
            return Ok(Advance::Lost);
        }
        match self.effect(turn, &o.record, &v.record).await {
            Ok(Some((change, answer))) => match apply(&change, answer, v.record.clone()) {
                Ok(after) => self.advance(o, v, after, answer).await,
                Err(e) => self.give_up(o, v, &e).await,
            },
            // No step is left: only the end is to be written.
            Ok(None) => {
                let after = v.record.clone();
                self.advance(o, v, Some(after), Answer::default()).await
            }
            Err(e) if is_passing(&e) => Err(e),
            Err(e) => self.give_up(o, v, &e).await,
        }
    }

    async fn effect(
        &self,
        turn: Turn,
        o: &Operation,
        v: &Volume,
    ) -> Result<Option<(crate::fleet::Change, Answer)>> {
        let Some(step) = o.next() else {
            return Ok(None);
        };
        if let Effect::Leave { .. } = step.effect {
            return Ok(Some((step.change.clone(), Answer::default())));
        }
        let nodes = self.inner.records.nodes().await?;
        let find = |name: &node::NodeName| nodes.iter().find(|n| n.name == *name).cloned();
        let mut call = call_for(turn, o.id.as_str(), &step.name, &step.effect, v, &find)?;
        if let Request::StartReplica(r) = &mut call.request {
            let heat = &self.inner.presence.heat;
            (r.extent_bytes, r.order) = heat.order(&v.name, v.size_bytes, Instant::now());
        }
        let answer = self
            .inner
            .nodes
            .call(call, |mut p| {
                self.promise(&v.name, &mut p);
                self.show(&o.id, |o| {
                    o.waiting.clear();
                    o.cutover = Some(p);
                });
            })
            .await?;
        Ok(Some((step.change.clone(), answer)))
    }

    /// Say beside when a cutover will probably end by when it nearly always does.
    fn promise(&self, volume: &VolumeName, p: &mut CutoverProgress) {
        if p.phase() != CutoverPhase::Converge {
            return;
        }
        let heat = &self.inner.presence.heat;
        let found = heat.convergence(volume, p.bytes_left, p.send_bytes_per_second);
        let Some(Convergence::Within { seconds, .. }) = found else {
            return; // that it lacks bandwidth the node says itself
        };
        if !p.note.is_empty() {
            p.note.push_str("; ");
        }
        let seconds = seconds.ceil();
        p.note
            .push_str(&format!("95 of 100 such converge within {seconds} s"));
    }

    /// Record a step that is done.
    async fn advance(
        &self,
        o: Read<Operation>,
        v: Read<Volume>,
        after: Option<Volume>,
        answer: Answer,
    ) -> Result<Advance> {
        let mut t = Transaction::default();
        if let Some(Effect::Leave { node }) = o.record.next().map(|s| &s.effect) {
            let left = Left {
                node: node.clone(),
                volume: v.record.name.clone(),
                id: v.record.id,
            };
            put_left(&mut t, &left)?;
        }
        let mut next = o.record.clone();
        let mut after = after;
        next.done = (next.done + 1).min(next.steps.len());
        if let Some(cutover) = answer.cutover {
            next.cutover = Some(cutover);
        }
        let mut happenings = Vec::new();
        if next.done == next.steps.len() {
            if let Some(v) = &mut after {
                v.operation = None;
            }
            happenings.push(end(&mut next));
        }
        self.write(t, o, v, after, next, happenings).await
    }

    /// A step failed for good: undo, or if that was undoing, stop and say both.
    async fn give_up(&self, o: Read<Operation>, v: Read<Volume>, e: &Error) -> Result<Advance> {
        let mut next = o.record.clone();
        let mut after = v.record.clone();
        let step = next
            .next()
            .map_or_else(String::new, |s| format!("{}: ", s.name));
        let mut happenings = Vec::new();
        let undoing = next.state == State::Undoing;
        next.error = Some(match next.error.take() {
            None => format!("{step}{e}"),
            Some(first) => format!("{first}. Undoing it failed too: {step}{e}"),
        });
        next.steps = if undoing {
            Vec::new()
        } else {
            undo(&next.command, &after)
        };
        next.done = 0;
        next.state = State::Undoing;
        if next.steps.is_empty() {
            after.operation = None;
            if after.status == Status::Deleting {
                after.status = Status::Ready;
            }
            happenings.push(end(&mut next));
        }
        let t = Transaction::default();
        self.write(t, o, v, Some(after), next, happenings).await
    }

    async fn write(
        &self,
        mut t: Transaction,
        o: Read<Operation>,
        v: Read<Volume>,
        after: Option<Volume>,
        next: Operation,
        happenings: Vec<Happening>,
    ) -> Result<Advance> {
        o.expect(&mut t);
        v.expect(&mut t);
        put_volume(&mut t, next.command.volume(), after.as_ref())?;
        put_operation(&mut t, &next)?;
        Ok(if self.commit(t, happenings).await? {
            Advance::Next(Box::new(next))
        } else {
            Advance::Lost
        })
    }
}

fn live(
    map: &Mutex<HashMap<OperationId, Live>>,
) -> std::sync::MutexGuard<'_, HashMap<OperationId, Live>> {
    map.lock().unwrap_or_else(|e| e.into_inner())
}

fn repeated(known: Operation, command: &Command) -> Result<Operation> {
    if known.command.same_request(command) {
        return Ok(known);
    }
    Err(Error::new(
        ErrorKind::Exists,
        format!(
            "operation {}: this id was used for {:?} already; choose a new id for a new command",
            known.id,
            described(&known.command)
        ),
    ))
}

/// Whether asking again may help: the node or the way to it is away, it did not refuse.
fn is_passing(e: &Error) -> bool {
    matches!(e.kind(), ErrorKind::Disconnected | ErrorKind::Timeout)
}

fn described(command: &Command) -> String {
    match command.node() {
        Some(node) => format!("{} {} ({node})", command.verb(), command.volume()),
        None => format!("{} {}", command.verb(), command.volume()),
    }
}

/// Mark the end of an operation and say so: it is done unless there is an error to tell.
fn end(o: &mut Operation) -> Happening {
    o.ended = Some(unix_ms());
    let (state, kind, how) = match &o.error {
        None => (State::Done, "operation-done", "done".to_owned()),
        Some(why) => (State::Failed, "operation-failed", format!("failed: {why}")),
    };
    o.state = state;
    let text = format!("{} {how}", described(&o.command));
    happening(o, kind, text)
}

fn happening(o: &Operation, kind: &'static str, text: String) -> Happening {
    Happening {
        kind,
        volume: o.command.volume().to_string(),
        node: o
            .command
            .node()
            .map(ToString::to_string)
            .unwrap_or_default(),
        text,
    }
}
