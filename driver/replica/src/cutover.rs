//! Cutover: the volume's ownership moves to the receiver's node while the guest runs.
//!
//! ```text
//!  prepare     catch_up: the receiver is at a recent epoch
//!  converge    increments while they shrink ─ else pace the guest ─ else mirror
//!  freeze      hold the guest, drain, last epoch                 failure: thaw, serve on
//!  relinquish  durable: generation g is given up ────────────── no way back from here
//!  activate    the receiver durably takes g+1                    failure: again, for ever
//!  redirect    held and new requests go to the new owner
//! ```
//!
//! Convergence is guaranteed: a paced guest dirties half of what the link carries, so that every
//! round halves what is left, and a mirrored one waits for the link with each write. What the guest
//! would need not to be slowed is reported as the bandwidth that is lacking.
//!
//! Giving up is done outside of the session, because a session that breaks drops its work wherever
//! it stands; and so is relinquishing, which must not be dropped halfway.

use crate::seam::Source;
use crate::sender::{Increment, Progress, Sender, Session};
use block::{Clock, Disk, Epoch, Error, ErrorKind, Generation, Nanos, NodeName, Result, Transport};
use futures_util::future::{Either, join, select};
use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;
use tokio::sync::oneshot;
use wire::{Message, SessionId};

/// Rounds before the mirror is used. A guest paced to half of the link halves what is left in each,
/// so that twenty of them turn a terabyte into a megabyte.
const ROUNDS_MAX: usize = 20;
/// A round that leaves more than this part of the one before does not converge by itself.
const SHRINKING_PERCENT: u32 = 80;
/// Rounds that fit the freeze but shrink no more, before one of them is taken.
const IDLE_ROUNDS: usize = 6;
/// Rounds in which pacing must show, before the guest is paced to half again.
const PACED_ROUNDS: usize = 2;
/// Never pace a guest below this: it would look dead. The mirror takes over.
const PACE_FLOOR: u64 = 1 << 20;
/// How long the guest's writes may wait for a mirror that does not answer.
const MIRROR_PATIENCE: Duration = Duration::from_secs(10);
/// Between two attempts to activate: soon, because nobody serves the volume meanwhile.
const RETRY_AFTER: Duration = Duration::from_millis(20);
/// How long one attempt may go unanswered. To activate is idempotent and takes a few syncs.
const ACTIVATE_PATIENCE: Duration = Duration::from_secs(5);
/// The longest time between two attempts.
const RETRY_AT_MOST: Duration = Duration::from_secs(1);

/// What is wanted.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The new owner's node: the one that the session's receiver is on.
    pub to: NodeName,
    /// The new owner's generation.
    pub next: Generation,
    /// The guest may be held for so long before ownership is given up; then the cutover aborts.
    pub freeze_budget: Duration,
    /// What the last increment should take: more rounds are made for it while they help. One that
    /// takes a quarter of the budget is good enough if they do not.
    pub last_increment: Duration,
}

/// Where a cutover is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// An increment that was under way is finished first, without sparing the guest any more.
    Finish,
    /// The receiver is brought to a recent epoch, seeded if need be.
    Prepare,
    /// Increments until the rest is small.
    Converge,
    /// The guest's writes wait for the receiver.
    Mirror,
    /// The guest is held.
    Freeze,
    /// Ownership is given up.
    Relinquish,
    /// The receiver takes it.
    Activate,
    /// Requests are sent on.
    Redirect,
}

/// What a cutover tells its observer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// Where it is.
    pub phase: Phase,
    /// Bytes that were dirty in the last round; of the increment that is being finished, those that are
    /// left.
    pub dirty: u64,
    /// Bytes a second that the last round moved.
    pub link_rate: f64,
    /// Bytes a second that the guest dirties.
    pub dirty_rate: f64,
    /// When the rest will be small enough, at these rates; `None` if it would never be.
    pub eta: Option<Duration>,
    /// The limit put on the guest's writes, if it had to be.
    pub paced: Option<u64>,
}

impl Update {
    fn of(phase: Phase) -> Update {
        Update {
            phase,
            dirty: 0,
            link_rate: 0.0,
            dirty_rate: 0.0,
            eta: None,
            paced: None,
        }
    }

    /// An increment that was under way when the cutover was ordered is so far; `None` if nothing is
    /// known of it yet.
    #[must_use]
    pub fn finishing(increment: Option<&Progress>) -> Update {
        let update = Update::of(Phase::Finish);
        increment.map_or(update, |p| Update {
            dirty: p.total.saturating_sub(p.done),
            link_rate: p.rate(),
            eta: p.eta(),
            ..update
        })
    }

    /// Bytes a second that the link lacks for this guest to be moved without slowing it.
    #[must_use]
    pub fn lacking(&self) -> Option<f64> {
        let lack = self.dirty_rate - self.link_rate * f64::from(SHRINKING_PERCENT) / 100.0;
        (lack > 0.0).then_some(lack)
    }
}

/// How a cutover went.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Report {
    /// The generation of the new owner.
    pub generation: Generation,
    /// The epoch that it began with.
    pub epoch: Epoch,
    /// From the first increment to the freeze.
    pub converging: Duration,
    /// From the freeze to the redirection.
    pub frozen: Duration,
    /// Whether the mirror was needed.
    pub mirrored: bool,
}

/// Move the volume. `dial` connects to the receiver's node; it is called again, for as long as it
/// takes, once ownership is given up. After an error the source serves on, unless it could not even
/// tell whether it has relinquished: then its volume has stopped by itself. Or it has, and `dial` was
/// cancelled since: then whoever did that decides who owns the volume.
pub async fn run<S: Source, D: Disk, C: Clock, T: Transport>(
    sender: &Sender<S, D, C>,
    plan: &Plan,
    mut dial: impl AsyncFnMut() -> Result<(T, SessionId)>,
    observe: impl Fn(&Update),
) -> Result<Report> {
    let (transport, id) = dial().await?;
    let attempt = Attempt {
        plan,
        observe: &observe,
        mirrored: Cell::new(false),
        frozen_at: Cell::new(Nanos::ZERO),
    };
    let began = sender.clock.now();
    let (ready, shipped) = oneshot::channel();
    let (given_up, relinquished) = oneshot::channel();
    let session = sender.connect(transport, id, async |session| {
        let epoch = attempt.converge(session).await?;
        if ready.send(epoch).is_err() || relinquished.await.is_err() {
            return Err(Error::new(ErrorKind::Cancelled, "relinquishing failed"));
        }
        observe(&Update::of(Phase::Activate));
        activate(session, plan.next, epoch).await
    });
    let relinquish = async {
        let epoch = shipped.await.ok()?;
        observe(&Update::of(Phase::Relinquish));
        let done = sender.source.relinquish(&plan.to, plan.next, epoch).await;
        if done.is_ok() {
            let _ = given_up.send(());
        }
        Some(done.map(|()| epoch))
    };
    let (session, relinquished) = join(session, relinquish).await;
    let Some(relinquished) = relinquished else {
        let error = session.err();
        give_up(sender, &attempt).await?;
        return Err(error
            .unwrap_or_else(|| Error::new(ErrorKind::Broken, "a cutover ended without an end"))
            .within(format!(
                "cutover of volume {} to {}",
                sender.volume, plan.to
            )));
    };
    let epoch = match relinquished {
        Ok(epoch) => epoch,
        Err(e) => {
            // Refused, or the record's sync failed. The volume knows: one that has stopped, or that
            // may have been given up, does not thaw.
            give_up(sender, &attempt).await?;
            return Err(e.within("relinquish the volume"));
        }
    };
    match session {
        Ok(()) => redirect(sender, plan, &observe).await?,
        Err(_) => roll_forward(sender, plan, epoch, dial, &observe).await?,
    }
    Ok(Report {
        generation: plan.next,
        epoch,
        converging: attempt.frozen_at.get().since(began),
        frozen: sender.clock.now().since(attempt.frozen_at.get()),
        mirrored: attempt.mirrored.get(),
    })
}

/// Bring a cutover to its end whose source has durably relinquished: also the source's way after a
/// restart. Tries until the receiver has taken the volume, because nothing else can be done, or until `dial`
/// says that it is [cancelled](ErrorKind::Cancelled): somebody else is to own the volume.
pub async fn roll_forward<S: Source, D: Disk, C: Clock, T: Transport>(
    sender: &Sender<S, D, C>,
    plan: &Plan,
    epoch: Epoch,
    mut dial: impl AsyncFnMut() -> Result<(T, SessionId)>,
    observe: impl Fn(&Update),
) -> Result<()> {
    let mut wait = RETRY_AFTER;
    loop {
        observe(&Update::of(Phase::Activate));
        let done = async {
            let (transport, id) = dial().await?;
            let work =
                async |session: &Session<'_, S, D, C, T>| activate(session, plan.next, epoch).await;
            sender.connect(transport, id, work).await
        };
        match done.await {
            Ok(()) => return redirect(sender, plan, observe).await,
            Err(e) if e.kind() == ErrorKind::Fenced => {
                return Err(e.within("somebody else owns the volume by now"));
            }
            Err(e) if e.kind() == ErrorKind::Cancelled => return Err(e),
            Err(e) => tracing::warn!(volume = %sender.volume, "activate, will try again: {e}"),
        }
        sender.clock.sleep(wait).await;
        wait = (wait * 2).min(RETRY_AT_MOST);
    }
}

async fn activate<S: Source, D: Disk, C: Clock, T: Transport>(
    session: &Session<'_, S, D, C, T>,
    next: Generation,
    epoch: Epoch,
) -> Result<()> {
    // A later owner there can only have come after this one.
    if session.owner() >= Some(next) {
        return Ok(());
    }
    let seen = session.peer.get().generation;
    if seen > next {
        // It was taken, and given on since, perhaps back to this node.
        return Err(Error::new(
            ErrorKind::Fenced,
            format!("activate generation {next}: generation {seen} was seen there"),
        ));
    }
    session.patience.set(ACTIVATE_PATIENCE);
    let message = Message::Activate { generation: next };
    session.link.send(epoch, &message).await?;
    let taken = |i: &crate::inbox::Inbox| i.activated.get().filter(|g| *g == next);
    session.inbox.wait(taken).await;
    Ok(())
}

async fn redirect<S: Source, D, C>(
    sender: &Sender<S, D, C>,
    plan: &Plan,
    observe: impl Fn(&Update),
) -> Result<()> {
    observe(&Update::of(Phase::Redirect));
    sender.source.redirect(&plan.to, plan.next).await
}

/// Undo everything that slows or holds the guest.
async fn give_up<S: Source, D, C>(
    sender: &Sender<S, D, C>,
    attempt: &Attempt<'_, impl Fn(&Update)>,
) -> Result<()> {
    sender.pacer.hurry(false);
    if attempt.mirrored.get() {
        sender.source.mirror_off().await?;
    }
    sender.source.pace(None).await?;
    sender.source.thaw().await
}

struct Attempt<'a, O> {
    plan: &'a Plan,
    observe: &'a O,
    mirrored: Cell<bool>,
    frozen_at: Cell<Nanos>,
}

impl<O: Fn(&Update)> Attempt<'_, O> {
    /// Bring the receiver to the epoch at which the guest is frozen.
    async fn converge<S: Source, D: Disk, C: Clock, T: Transport>(
        &self,
        session: &Session<'_, S, D, C, T>,
    ) -> Result<Epoch> {
        (self.observe)(&Update::of(Phase::Prepare));
        let (_, first) = session.catch_up().await?;
        if self.shrink(session, first).await? {
            return self.freeze(session).await;
        }
        (self.observe)(&Update::of(Phase::Mirror));
        let source = &session.sender.source;
        self.mirrored.set(true);
        session.sender.pacer.hurry(true);
        session.patience.set(MIRROR_PATIENCE);
        let began = session.sender.clock.now();
        let before = source.mirror_on().await?;
        let forward = pin!(session.forward());
        let rest = pin!(async {
            if session.deliver(before, began).await?.is_none() {
                return Err(Error::new(
                    ErrorKind::Busy,
                    "the guest overwrote the epoch before the mirror faster than it could be sent",
                ));
            }
            self.freeze(session).await
        });
        match select(rest, forward).await {
            Either::Left((epoch, _)) => epoch,
            Either::Right((ended, _)) => {
                ended?;
                Err(Error::new(
                    ErrorKind::Cancelled,
                    "the mirror was turned off",
                ))
            }
        }
    }

    /// Increments until the last one would fit the freeze; false if the mirror must help.
    async fn shrink<S: Source, D: Disk, C: Clock, T: Transport>(
        &self,
        session: &Session<'_, S, D, C, T>,
        first: Increment,
    ) -> Result<bool> {
        let source = &session.sender.source;
        let fits = self.plan.freeze_budget / 4;
        let aim = self.plan.last_increment.min(fits);
        let mut paced: Option<(u64, usize)> = None;
        let mut idle_rounds = 0;
        let mut last = first;
        for round in 0..ROUNDS_MAX {
            if round > 0 && last.elapsed <= aim || idle_rounds == IDLE_ROUNDS {
                return Ok(true);
            }
            let this = session.increment().await?;
            let update = self.update(&last, &this, fits, paced.map(|p| p.0));
            (self.observe)(&update);
            let shrinks = this.elapsed * 100 <= last.elapsed * SHRINKING_PERCENT;
            last = this;
            if shrinks {
                continue;
            }
            if last.elapsed <= fits {
                idle_rounds += 1;
                continue;
            }
            if !session.sender.pacer.is_hurried() {
                // The mover stops sparing the guest before the guest is asked to spare the mover.
                session.sender.pacer.hurry(true);
                continue;
            }
            let limit = match paced {
                Some((limit, since)) if round - since < PACED_ROUNDS => limit,
                Some((limit, _)) => limit / 2,
                None => update.link_rate as u64 / 2,
            };
            if limit < PACE_FLOOR {
                return Ok(false);
            }
            if paced.is_none_or(|(now, _)| now != limit) {
                source.pace(Some(limit)).await?;
                paced = Some((limit, round));
            }
        }
        Ok(last.elapsed <= fits)
    }

    fn update(
        &self,
        last: &Increment,
        this: &Increment,
        fits: Duration,
        paced: Option<u64>,
    ) -> Update {
        let seconds = |d: Duration| d.as_secs_f64().max(1e-6);
        let link_rate = this.dirty as f64 / seconds(this.elapsed);
        let dirty_rate = this.dirty as f64 / seconds(last.elapsed);
        // Each round takes `ratio` of the one before: a geometric series down to what fits.
        let ratio = seconds(this.elapsed) / seconds(last.elapsed);
        let eta = (ratio < 1.0).then(|| {
            let rest = seconds(this.elapsed) - seconds(fits) * ratio;
            Duration::from_secs_f64((rest.max(0.0) / (1.0 - ratio)).min(1e9))
        });
        Update {
            phase: Phase::Converge,
            dirty: this.dirty,
            link_rate,
            dirty_rate,
            eta,
            paced,
        }
    }

    /// Hold the guest and send the last epoch, all within the budget.
    async fn freeze<S: Source, D: Disk, C: Clock, T: Transport>(
        &self,
        session: &Session<'_, S, D, C, T>,
    ) -> Result<Epoch> {
        // A link that has gone quiet is noticed before the guest is held, not after.
        self.within(session, session.ping()).await?;
        (self.observe)(&Update::of(Phase::Freeze));
        let sender = session.sender;
        sender.pacer.hurry(true);
        self.frozen_at.set(sender.clock.now());
        let last = async {
            sender.source.freeze().await?;
            session.increment().await
        };
        Ok(self.within(session, last).await?.epoch)
    }

    async fn within<S: Source, D: Disk, C: Clock, T: Transport, R>(
        &self,
        session: &Session<'_, S, D, C, T>,
        work: impl Future<Output = Result<R>>,
    ) -> Result<R> {
        let budget = self.plan.freeze_budget;
        let late = pin!(session.sender.clock.sleep(budget));
        match select(pin!(work), late).await {
            Either::Left((result, _)) => result,
            Either::Right(_) => Err(Error::new(
                ErrorKind::Timeout,
                format!(
                    "the last step would hold the guest for more than {budget:?}; it was let go. \
                     Try again, or allow a longer freeze"
                ),
            )),
        }
    }
}
