//! Replication's two seams to a volume, on a simulated host.

use crate::group::Group;
use crate::host::Host;
use block::{Epoch, Error, ErrorKind, Generation, NodeName, Result};
use replica::{GuestLoad, MirrorItem, Source, Target};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use volume::{CursorName, Role, Snapshot, Start};

/// The volume, as the sender for one replica sees it.
#[derive(Clone)]
pub struct SimSource {
    /// The volume.
    pub host: Host,
    /// Whom the replica is on.
    pub to: NodeName,
    /// Whom it is rotated with.
    pub group: Option<Group>,
}

impl SimSource {
    fn name(&self) -> CursorName {
        CursorName::Replica(self.to.clone())
    }
}

impl Source for SimSource {
    type Snapshot = Arc<Snapshot>;

    fn generation(&self) -> Generation {
        match self.host.call(|v, _| v.role()) {
            Role::Owner { generation, .. } => generation,
            // It still speaks for the generation that it gave up: the next is the target's.
            Role::Relinquished { generation, .. } => Generation(generation.0 - 1),
            Role::Standby => Generation(0),
        }
    }

    fn epoch(&self) -> Epoch {
        self.host.call(|v, _| v.open_epoch())
    }

    fn cursor(&self) -> Option<Epoch> {
        let name = self.name();
        self.host.call(|v, _| {
            let all = v.cursors().iter();
            all.filter(|c| c.name == name).map(|c| c.epoch).next()
        })
    }

    fn guest_load(&self) -> GuestLoad {
        GuestLoad::default()
    }

    async fn replaced(&self, by: Generation) -> Result<()> {
        self.host.control(|v, now| v.observe(now, by)).await
    }

    async fn begin_seed(&self) -> Result<Epoch> {
        let name = self.name();
        if self.cursor().is_some() {
            self.host
                .control(|v, now| v.remove_cursor(now, &name))
                .await?;
        }
        let begin = |v: &mut volume::Volume, _| v.add_cursor(name.clone(), Start::Now);
        self.host.control(begin).await?;
        let gone = || Error::new(ErrorKind::Cancelled, "the replica was removed meanwhile");
        self.cursor().ok_or_else(gone)
    }

    async fn resume_at(&self, epoch: Epoch) -> Result<bool> {
        let at = |v: &mut volume::Volume, _| v.add_cursor(self.name(), Start::At(epoch));
        match self.host.control(at).await {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    async fn seeded(&self) -> Result<()> {
        self.host.control(|v, _| v.seeded(&self.name())).await
    }

    async fn rotate(&self) -> Result<Arc<Snapshot>> {
        match &self.group {
            Some(group) => group.rotate(&self.host, &self.name()).await,
            None => self.host.rotate(|v| v.rotate(&self.name())).await,
        }
    }

    async fn committed(&self, epoch: Epoch) -> Result<()> {
        self.host
            .control(|v, _| v.committed(&self.name(), epoch))
            .await
    }

    async fn abandon(&self, epoch: Epoch) -> Result<()> {
        self.host.call(|v, _| v.abandon(&self.name(), epoch));
        Ok(())
    }

    async fn freeze(&self) -> Result<()> {
        self.host.freeze().await
    }

    async fn thaw(&self) -> Result<()> {
        self.host.call(|v, now| v.thaw(now));
        Ok(())
    }

    async fn pace(&self, bytes_per_second: Option<u64>) -> Result<()> {
        self.host.call(|v, now| v.pace(now, bytes_per_second));
        Ok(())
    }

    async fn relinquish(&self, to: &NodeName, next: Generation, epoch: Epoch) -> Result<()> {
        self.host
            .control(|v, _| v.relinquish(to, next, epoch))
            .await
    }

    async fn redirect(&self, _to: &NodeName, _generation: Generation) -> Result<()> {
        self.host.redirect()
    }

    async fn mirror_on(&self) -> Result<Arc<Snapshot>> {
        let on = |v: &mut volume::Volume| v.mirror_on(&self.name());
        self.host.mirror_began();
        self.host.rotate(on).await
    }

    async fn mirror_off(&self) -> Result<()> {
        self.host.call(|v, now| v.mirror_off(now));
        Ok(())
    }

    async fn mirror_next(&self) -> Option<MirrorItem> {
        self.host.mirror_next().await
    }

    fn mirrored(&self, id: u32, result: std::result::Result<(), i32>) {
        self.host.mirrored(id, result);
    }
}

/// The volume, as a receiver on its node sees it.
#[derive(Clone)]
pub struct SimTarget {
    /// The volume.
    pub host: Host,
    /// The generation of the copy that is to take the place of an owner that is gone.
    pub(crate) takes_over: Rc<Cell<Option<Generation>>>,
}

impl Target for SimTarget {
    async fn seen(&self) -> Result<Generation> {
        Ok(self.host.call(|v, _| v.seen()))
    }

    async fn observe(&self, generation: Generation) -> Result<()> {
        self.host.control(|v, now| v.observe(now, generation)).await
    }

    async fn last_owned(&self) -> Result<Generation> {
        Ok(self.host.call(|v, _| v.last_owned()))
    }

    async fn activate(&self, generation: Generation, epoch: Epoch) -> Result<()> {
        if let Some(of) = self.takes_over.take() {
            self.host.takes_over(generation, (of, epoch));
        }
        let activate = |v: &mut volume::Volume, _| v.activate(generation, epoch);
        self.host.control(activate).await?;
        self.host.took_over();
        self.host.offer();
        Ok(())
    }

    async fn owned(&self) -> Result<Option<Generation>> {
        Ok(self.host.owned())
    }

    async fn gave_up(&self) -> Result<Option<(Generation, Epoch)>> {
        Ok(self.host.call(|v, _| v.gave_up()))
    }
}
