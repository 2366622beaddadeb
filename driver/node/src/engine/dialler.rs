//! Dials a volume's owner for the forwarder, and again when the link is lost or has gone silent.

use super::fence::{Fence, OWNER};
use super::forward::{Forwarder, NewLink};
use super::handle::VolumeHandle;
use super::message::Message;
use super::volume_cell::VolumeCell;
use block::{Error, ErrorKind, Result};
use nbd::client::{Agreed, Uri, describe, dial};
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// How long the owner may be silent while it is dialled.
const DIAL_PATIENCE: Duration = Duration::from_secs(5);
/// Between two attempts to reach the owner: short against any client's own timeout.
const DIAL_PAUSE: Duration = Duration::from_millis(50);

/// How long a link that was dialled ahead is waited for: the owner answers it as soon as it is one, and by
/// then it is. On a long way the answer takes as long as a dial takes to begin.
const AHEAD_PATIENCE: Duration = Duration::from_millis(500);

/// A link that was lost sooner is not made again at once: its owner may have closed it because it is
/// the owner no more, and does not yet know who is.
const LINK_STEADY: Duration = Duration::from_secs(1);
/// How long an owner that owes answers may give none. A firewall that forgets a connection tells
/// nobody, and guests wait; to dial an owner anew that is only slow costs nothing, since it drains the
/// old link first.
const LINK_PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked. Looks are counted and not time, so that a process that was stopped does not
/// take its own absence for the owner's.
const LOOK: Duration = Duration::from_millis(500);

/// Keeps a forwarder linked to the volume's owner.
pub(super) struct Dialler {
    pub(super) volume: VolumeHandle,
    pub(super) owner: Uri,
    pub(super) fence: Fence,
    pub(super) round: u64,
}

impl Dialler {
    /// Dial the owner, and again whenever the link is lost, until the forwarder is gone or switched.
    /// An owner that has given the volume away says to whom.
    pub(super) async fn keep_linked(
        mut self,
        mut losses: mpsc::Receiver<()>,
        mut ahead: Option<Ahead>,
    ) {
        let (mut failing, mut told) = (None, String::new());
        loop {
            let made = match ahead.take() {
                Some(ahead) => ahead.link().await,
                None => None,
            };
            let dialled = match made {
                Some(made) => Ok(made),
                None => dial_fenced(&self.owner, &self.fence).await,
            };
            let e = match dialled {
                Ok((agreed, socket)) => {
                    let since = Instant::now();
                    (failing, told) = (None, String::new());
                    if self.attend(agreed, socket, &mut losses).await.is_none() {
                        return;
                    }
                    if since.elapsed() < LINK_STEADY {
                        tokio::time::sleep(DIAL_PAUSE).await;
                    }
                    continue;
                }
                Err(e) => e,
            };
            let mut asked = self.owner.clone();
            asked.export = format!("{}@{OWNER}", asked.export);
            if e.kind() == ErrorKind::NotFound
                && let Ok(said) = blocking(move || describe(&asked, DIAL_PATIENCE)).await
                && let Ok(next) = said.parse::<Uri>()
                && next != self.owner
            {
                tracing::info!("{} says that the volume's owner is now {next}", self.owner);
                self.owner = next;
            } else if failing.get_or_insert_with(Instant::now).elapsed() < LINK_STEADY {
                // while it passes from one owner to the next, nobody owns it for an instant
                tracing::debug!("forward to the volume's owner: {e}");
            } else if told != e.to_string() {
                tracing::warn!("guests wait for the volume's owner, which is dialled on: {e}");
                told = e.to_string();
            }
            tokio::select! {
                () = tokio::time::sleep(DIAL_PAUSE) => {}
                lost = losses.recv() => if lost.is_none() { return },
            }
        }
    }

    /// Hand a link to the forwarder and return when it is lost; `None` if the forwarder is gone.
    async fn attend(
        &self,
        agreed: Agreed,
        socket: OwnedFd,
        losses: &mut mpsc::Receiver<()>,
    ) -> Option<()> {
        // Without it a silent owner is waited for, as long as TCP does.
        let breaker = socket.try_clone().map(TcpStream::from).ok();
        let link = Box::new(NewLink {
            socket,
            agreed,
            round: self.round,
        });
        let VolumeHandle { mailbox, index, .. } = &self.volume;
        mailbox.send(Message::Link(*index, link)).ok()?;
        let (mut looks, mut before) = (0, 0);
        loop {
            tokio::select! {
                lost = losses.recv() => return lost,
                () = tokio::time::sleep(LOOK) => {}
            }
            let pulse = |cell: &mut VolumeCell, _| cell.forwarder.as_ref().map(Forwarder::pulse);
            let Ok(Some((owed, answers))) = self.volume.on_cell(pulse).await else {
                continue; // it ends, and so will this
            };
            if owed == 0 || answers != before {
                (looks, before) = (0, answers);
                continue;
            }
            looks += 1;
            if LOOK * looks == LINK_PATIENCE {
                tracing::warn!(
                    "the volume's owner owes {owed} answers and was silent for {LINK_PATIENCE:?}: \
                     the network may have lost the connection, a new one is made"
                );
                if let Some(breaker) = &breaker {
                    let _ = breaker.shutdown(Shutdown::Both); // it may have ended
                }
            }
        }
    }
}

/// A link that is dialled before its owner is one.
///
/// ```text
///  converge    connect, negotiate, GO ───► waits there: nobody owns generation g+1 yet
///  activate                                it is owned ─► GO is answered
///  redirect    the link is there, and takes what the guest waits for
/// ```
///
/// It is fenced like any other, and answered only by an owner: whoever dials early gets nothing early.
/// Dropped, it is given up.
#[derive(Debug)]
pub struct Ahead(JoinHandle<(Agreed, OwnedFd)>);

impl Ahead {
    /// Dial until it is answered: one that comes too early is refused after a few seconds.
    pub(super) fn begin(owner: Uri, fence: Fence) -> Ahead {
        Ahead(tokio::spawn(async move {
            loop {
                match dial_fenced(&owner, &fence).await {
                    Ok(made) => return made,
                    Err(e) => tracing::debug!("dial the owner to be: {e}"),
                }
                tokio::time::sleep(DIAL_PAUSE).await;
            }
        }))
    }

    /// The link, if it is there or about to be.
    async fn link(mut self) -> Option<(Agreed, OwnedFd)> {
        tokio::time::timeout(AHEAD_PATIENCE, &mut self.0)
            .await
            .ok()?
            .ok()
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn dial_fenced(owner: &Uri, fence: &Fence) -> Result<(Agreed, OwnedFd)> {
    let link = Uri {
        export: fence.export(&owner.export),
        ..owner.clone()
    };
    blocking(move || dial(&link, &[], DIAL_PATIENCE)).await
}

async fn blocking<T: Send + 'static>(f: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let ended = tokio::task::spawn_blocking(f).await;
    ended.unwrap_or_else(|e| Err(Error::new(ErrorKind::Cancelled, e.to_string())))
}
