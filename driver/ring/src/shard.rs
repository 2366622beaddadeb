//! The thread and its loop.

use crate::mailbox::{Inbox, Mailbox, mailbox};
use crate::ring::{Done, Ring};
use block::{Error, ErrorKind, Nanos, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;

/// What a shard does after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Submit, wait, and take another turn.
    Go,
    /// End the thread.
    Stop,
}

/// The state machine that a shard runs. Nothing in it may block.
pub trait Handler {
    /// What other threads may send it.
    type Message: Send + 'static;

    /// An operation completed.
    fn completed(&mut self, ring: &mut Ring, done: Done);

    /// A message arrived.
    fn message(&mut self, ring: &mut Ring, message: Self::Message);

    /// A batch is over: start what it made possible. Called once a turn.
    fn turn(&mut self, ring: &mut Ring) -> Next;

    /// When the next turn must come even if nothing completes.
    fn deadline(&self) -> Option<Nanos>;
}

/// How a shard is set up.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Name of its thread.
    pub name: String,
    /// The processor to run on; `None` leaves it to the scheduler.
    pub cpu: Option<usize>,
}

/// A running shard.
pub struct Shard<M> {
    mailbox: Mailbox<M>,
    thread: Option<JoinHandle<()>>,
}

impl<M: Send + 'static> Shard<M> {
    /// Start a thread with a ring and the handler that `make` builds on it, given a sender to
    /// itself. Returns when both stand, or with why they do not.
    pub fn spawn<H>(
        config: Config,
        make: impl FnOnce(&mut Ring, Mailbox<M>) -> Result<H> + Send + 'static,
    ) -> Result<Shard<M>>
    where
        H: Handler<Message = M>,
    {
        let (mailbox, inbox) =
            mailbox().map_err(|e| Error::errno("make an eventfd for a shard", e as i32))?;
        let (ready, stands) = sync_channel(1);
        let own = mailbox.clone();
        let thread = std::thread::Builder::new()
            .name(config.name.clone())
            .spawn(move || {
                let built = Ring::new().and_then(|mut ring| {
                    let handler = make(&mut ring, own)?;
                    Ok((ring, handler))
                });
                match built {
                    Ok((ring, handler)) => {
                        pin(&config);
                        let _ = ready.send(Ok(()));
                        run(ring, handler, &inbox);
                    }
                    Err(e) => {
                        let _ = ready.send(Err(e));
                    }
                }
            })
            .map_err(|e| Error::io("start a shard's thread", e))?;
        stands.recv().unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::Broken,
                "a shard's thread panicked at its start",
            ))
        })?;
        Ok(Shard {
            mailbox,
            thread: Some(thread),
        })
    }

    /// A sender to the shard.
    #[must_use]
    pub fn mailbox(&self) -> Mailbox<M> {
        self.mailbox.clone()
    }

    /// Wait until the handler has stopped.
    pub fn join(mut self) -> Result<()> {
        let ended = self.thread.take().map(JoinHandle::join);
        match ended {
            Some(Err(_)) => Err(Error::new(ErrorKind::Broken, "a shard's thread panicked")),
            Some(Ok(())) | None => Ok(()),
        }
    }
}

fn pin(config: &Config) {
    let Some(cpu) = config.cpu else { return };
    let mut set = CpuSet::new();
    let pinned = set
        .set(cpu)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    if let Err(e) = pinned {
        tracing::warn!("{} stays unpinned: processor {cpu}: {e}", config.name);
    }
}

fn run<H: Handler>(mut ring: Ring, mut handler: H, inbox: &Inbox<H::Message>) {
    ring.watch(inbox.bell().as_fd().as_raw_fd());
    loop {
        if let Err(e) = ring.enter(handler.deadline()) {
            tracing::error!("a shard stops: {e}");
            return;
        }
        for i in 0..ring.batch_len() {
            if let Some(done) = ring.complete(i) {
                handler.completed(&mut ring, done);
            }
        }
        if ring.take_woken() {
            inbox.empty(|message| handler.message(&mut ring, message));
        }
        if handler.turn(&mut ring) == Next::Stop {
            return;
        }
    }
}
