//! Volumes that are replicated as a group: their senders meet before each rotation, and rotate at one
//! point in time.

use crate::host::Host;
use block::{Epoch, Result};
use futures_util::future::{Either, select};
use std::cell::RefCell;
use std::fmt;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use volume::{CursorName, Snapshot};

/// How long a member waits for the others: one may be seeding, or its link may be down.
const PATIENCE: Duration = Duration::from_millis(20);

type Told = oneshot::Sender<Arc<Snapshot>>;

struct Waiting {
    host: Host,
    name: CursorName,
    tell: Told,
}

#[derive(Default)]
struct Inner {
    waiting: RefCell<Vec<Waiting>>,
    /// What was rotated together: for whom, and the members' epochs by volume.
    points: RefCell<Vec<(CursorName, Vec<Epoch>)>>,
}

/// A group. Cheap to clone.
#[derive(Clone)]
pub struct Group {
    members: usize,
    inner: Rc<Inner>,
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a group of {}", self.members)
    }
}

impl Group {
    /// A group of so many volumes.
    #[must_use]
    pub fn new(members: usize) -> Group {
        Group {
            members,
            inner: Rc::default(),
        }
    }

    /// End an epoch for a replica: together with the other members, if they come in time.
    pub(crate) async fn rotate(&self, host: &Host, name: &CursorName) -> Result<Arc<Snapshot>> {
        let (tell, told) = oneshot::channel();
        self.inner.waiting.borrow_mut().push(Waiting {
            host: host.clone(),
            name: name.clone(),
            tell,
        });
        self.rotate_if_all(name);
        let together = {
            let late = pin!(host.sleep(PATIENCE));
            match select(told, late).await {
                Either::Left((Ok(snapshot), _)) => Some(snapshot),
                // Given up by whoever was to tell, or too late: nobody waits there any more.
                _ => None,
            }
        };
        let Some(snapshot) = together else {
            return host.rotate(|v| v.rotate(name)).await;
        };
        host.settled(snapshot).await
    }

    fn rotate_if_all(&self, name: &CursorName) {
        let mut waiting = self.inner.waiting.borrow_mut();
        waiting.retain(|w| !w.tell.is_closed());
        if waiting.iter().filter(|w| w.name == *name).count() < self.members {
            return;
        }
        let mut all: Vec<_> = waiting.extract_if(.., |w| w.name == *name).collect();
        drop(waiting);
        all.sort_by_key(|w| w.host.volume_id());
        let hosts: Vec<&Host> = all.iter().map(|w| &w.host).collect();
        match Host::rotate_together(&hosts, name) {
            Ok(snapshots) => {
                let epochs = snapshots.iter().map(|s| s.epoch()).collect();
                self.inner.points.borrow_mut().push((name.clone(), epochs));
                for (w, snapshot) in all.into_iter().zip(snapshots) {
                    // Who asked may have gone: its snapshot is given up at its next rotation.
                    let _ = w.tell.send(snapshot);
                }
            }
            // Each tries for itself, and hears why it cannot.
            Err(_) => drop(all),
        }
    }

    /// Whether the members' epochs, in the order of their volumes, were closed together.
    #[must_use]
    pub fn is_point(&self, name: &CursorName, epochs: &[Epoch]) -> bool {
        let points = self.inner.points.borrow();
        points.iter().any(|(n, e)| n == name && e == epochs)
    }
}
