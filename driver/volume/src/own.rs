//! Control calls about the volume's life: create, open, ownership, close.

use crate::area::AreaSet;
use crate::cursor::{Cursor, CursorName};
use crate::epoch::Epochs;
use crate::errno::EIO;
use crate::intent::Intents;
use crate::meta::superblock;
use crate::meta::{Identity, Store, Superblock};
use crate::ownership::{Role, Step, fenced};
use crate::request::{Action, Control, Outcome};
use crate::track::EPOCHS_RESERVED;
use crate::volume::{Config, Volume};
use block::{
    AREA_BYTES, Area, Epoch, Error, ErrorKind, Generation, ImageMark, Nanos, NodeName, Result,
    VolumeId,
};

/// Control calls that may wait for the disk at a time: each comes from a mover or an operator.
const CONTROLS_MAX: usize = 64;

/// The copy that a former owner kept is tracked until more than one area in so many has changed: from
/// there on a comparison by digest costs little more, and after a crash every replica would be compared
/// in all that was ever written.
const FORMER_SHARE: u64 = 4;
/// It is tracked up to so many areas in any case.
const FORMER_AREAS: u64 = 16;

/// The durable side of a volume.
#[derive(Debug)]
pub(crate) struct Meta {
    pub(crate) store: Store,
    pub(crate) intents: Intents,
    pub(crate) superblock: Superblock,
    waiting: Vec<Waiting>,
    last_control: u64,
    /// The version that says what this node may do now. Until it is durable the gate is shut.
    believed: u64,
    announced: bool,
    /// The mark of an image that was taken for the volume's, to be recorded when every area of it is
    /// durably suspect.
    adopted: Option<ImageMark>,
    /// Another node took the volume over from this one, or is believed to have done so and is gone. It has
    /// not come back since.
    replaced: bool,
    pub(crate) swept_at: Nanos,
    /// A sweep has begun and not ended.
    pub(crate) sweeping: bool,
}

/// A call to answer when the superblock of a version is durable and a round of the flush group, zero
/// for none, has ended.
#[derive(Debug)]
struct Waiting {
    version: u64,
    round: u64,
    /// And when no request is beyond the gate.
    quiet: bool,
    control: Control,
}

/// A record to write as soon as everything in the image is durable.
#[derive(Debug)]
pub(crate) enum AfterSync {
    Relinquish {
        to: NodeName,
        generation: Generation,
        epoch: Epoch,
    },
    Close(ImageMark),
}

impl Meta {
    fn new(superblock: Superblock, intents: Intents, store: Store) -> Meta {
        Meta {
            believed: store.version(),
            store,
            intents,
            superblock,
            waiting: Vec::new(),
            last_control: 0,
            announced: false,
            adopted: None,
            replaced: false,
            swept_at: Nanos::ZERO,
            sweeping: false,
        }
    }

    /// The volume's role is on disk.
    pub(crate) fn is_believed(&self) -> bool {
        self.store.durable() >= self.believed
    }
}

impl Volume {
    /// Make a volume with metadata, owned by this node or waiting for a copy. Its metadata file,
    /// [`crate::meta_bytes`] long, must be allocated. [`Action::Opened`] comes when it is durable.
    pub fn create(config: Config, identity: Identity, role: Role) -> Result<Volume> {
        if identity.image.len() > superblock::IMAGE_PATH_MAX {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "create volume {}: the image's path is longer than {} bytes",
                    identity.name,
                    superblock::IMAGE_PATH_MAX
                ),
            ));
        }
        let seen = match &role {
            Role::Owner { generation, .. } | Role::Relinquished { generation, .. } => *generation,
            Role::Standby => Generation(0),
        };
        let since = match &role {
            Role::Owner { since, .. } => *since,
            _ => Epoch(0),
        };
        let areas = config.size.div_ceil(AREA_BYTES);
        let superblock = Superblock {
            size: config.size,
            role,
            seen,
            ceiling: Epoch(since.0 + EPOCHS_RESERVED),
            cursors: Vec::new(),
            clean: false,
            mark: ImageMark::default(),
            doubted: Generation(0),
            identity,
        };
        let store = Store::create(superblock.identity.id, areas);
        let epochs = Epochs::new(config.size, since.next());
        let meta = Meta::new(superblock, Intents::new(areas), store);
        Ok(Volume::new(config, epochs, Some(meta)))
    }

    /// Open a volume from its metadata file. `expect` is the identity that the node has on record, if
    /// it has one; `config.size` is the size of the image as found. Requests are held until
    /// [`Action::Opened`].
    pub fn open(config: Config, expect: Option<VolumeId>, meta: &[u8]) -> Result<Volume> {
        let size = config.size;
        Self::open_from(config, expect, meta, size)
    }

    /// As [`Volume::open`], once the image of a volume that was closed in order has grown from `before` to
    /// `config.size` bytes, and its metadata file with it. What lies beyond its former end may differ from
    /// the replicas': it is suspect. Until [`Action::Opened`] a crash may leave either size on record, so
    /// until then it is opened in this way again.
    pub fn open_grown(
        config: Config,
        expect: Option<VolumeId>,
        meta: &[u8],
        before: u64,
    ) -> Result<Volume> {
        let before = before.min(config.size);
        Self::open_from(config, expect, meta, before)
    }

    fn open_from(
        config: Config,
        expect: Option<VolumeId>,
        meta: &[u8],
        before: u64,
    ) -> Result<Volume> {
        let found = superblock::find(meta)?;
        let sb = &found.superblock;
        let name = &sb.identity.name;
        if let Some(id) = expect
            && id != sb.identity.id
        {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "open volume {name}: its metadata belongs to volume {}, not {id}; put the right \
                     metadata file back, or import the image as a new volume",
                    sb.identity.id
                ),
            ));
        }
        if sb.size != config.size && sb.size != before {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "open volume {name}: the image has {} bytes, the volume {}; put the right image \
                     back, or grow or shrink it back to {} bytes (`forerun volume resize` changes \
                     both)",
                    config.size, sb.size, sb.size
                ),
            ));
        }
        let areas = config.size.div_ceil(AREA_BYTES);
        let mut intents = Intents::new(areas);
        let store = Store::open(&found, meta, &mut intents, areas);
        let mut superblock = found.superblock;
        if before < config.size {
            for area in before / AREA_BYTES..areas {
                assert!(intents.set(Area(area)), "an area of the volume");
            }
            superblock.size = config.size;
            superblock.mark = superblock.mark.in_use();
        }
        let mut epochs = Epochs::new(config.size, superblock.ceiling.next());
        epochs.recover(superblock.cursors.clone(), intents.wanted().iter());
        superblock.clean = false;
        superblock.ceiling.0 += EPOCHS_RESERVED;
        let meta = Meta::new(superblock, intents, store);
        Ok(Volume::new(config, epochs, Some(meta)))
    }

    /// Compare the image as `found` with the one on record, before anything else happens: one that was
    /// exchanged or written to behind our back differs from what the metadata says of it. To `adopt`
    /// makes all of it suspect, so that replicas are compared with it by digest; true if that was
    /// needed.
    pub fn know_image(&mut self, found: ImageMark, adopt: bool) -> Result<bool> {
        let Some(meta) = &mut self.meta else {
            return Ok(false);
        };
        let sb = &mut meta.superblock;
        let Some(difference) = sb.mark.difference(&found) else {
            sb.mark = found.in_use();
            return Ok(false);
        };
        if !adopt {
            return Err(Error::new(ErrorKind::Corrupt, difference));
        }
        if !sb.cursors.is_empty() {
            let all = || (0..self.config.size.div_ceil(AREA_BYTES)).map(Area);
            all().for_each(|a| assert!(meta.intents.set(a), "an area of the volume"));
            self.epochs.recover(sb.cursors.clone(), all());
        }
        meta.adopted = Some(found.in_use());
        Ok(true)
    }

    /// Who the volume is, if it has metadata.
    #[must_use]
    pub fn identity(&self) -> Option<&Identity> {
        self.meta.as_ref().map(|m| &m.superblock.identity)
    }

    /// What this node may do, as its record says (or will, once durable). A volume without metadata
    /// is always its owner's.
    #[must_use]
    pub fn role(&self) -> Role {
        let owner = Role::Owner {
            generation: Generation(0),
            since: Epoch(0),
        };
        self.meta
            .as_ref()
            .map_or(owner, |m| m.superblock.role.clone())
    }

    /// For which generation this node gave the volume away, and the epoch that its image is since;
    /// `None` if it did not, or if another image has taken the place of that one.
    #[must_use]
    pub fn gave_up(&self) -> Option<(Generation, Epoch)> {
        let sb = &self.meta.as_ref()?.superblock;
        match sb.role {
            Role::Relinquished {
                generation, epoch, ..
            } if sb.doubted < generation => Some((generation, epoch)),
            _ => None,
        }
    }

    /// The generation in which this node owns the volume, if it does: as [`Volume::role`], for those
    /// who ask often.
    #[must_use]
    pub fn owned(&self) -> Option<Generation> {
        match self.meta.as_ref().map(|m| &m.superblock.role) {
            None => Some(Generation(0)),
            Some(Role::Owner { generation, .. }) => Some(*generation),
            Some(_) => None,
        }
    }

    /// Whether requests are sent on to another node.
    #[must_use]
    pub fn is_forwarding(&self) -> bool {
        self.forwarding
    }

    /// The highest generation seen.
    #[must_use]
    pub fn seen(&self) -> Generation {
        self.meta
            .as_ref()
            .map_or(Generation(0), |m| m.superblock.seen)
    }

    /// The highest generation known to have been owned. One that was offered may not have been taken, and
    /// a target that heard of it would refuse its own.
    #[must_use]
    pub fn last_owned(&self) -> Generation {
        match self.role() {
            Role::Relinquished { generation, .. } if generation == self.seen() => {
                Generation(generation.0.saturating_sub(1))
            }
            _ => self.seen(),
        }
    }

    /// Areas that may differ from a replica, as of now.
    #[must_use]
    pub fn intents(&self) -> Option<&AreaSet> {
        self.meta.as_ref().map(|m| m.intents.wanted())
    }

    /// A peer speaks with this generation. Durable before it is answered; an owner of a lower one
    /// has been replaced: it steps down at once, and whoever drives it closes its connections. It is
    /// answered when what had passed the gate has ended, too: the peer is going to write the image.
    pub fn observe(&mut self, now: Nanos, generation: Generation) -> Result<Control> {
        self.must_answer()?;
        let meta = self.meta.as_mut().ok_or_else(no_meta)?;
        let seen = meta.superblock.seen;
        if generation < seen {
            return Err(fenced("observe", generation, seen));
        }
        if generation > seen {
            meta.superblock.seen = generation;
            if meta.superblock.role.is_owner() {
                self.step_down(now);
            }
            self.changed();
        }
        self.control_when_quiet()
    }

    /// Another node took the volume over in `generation` without this node's consent: it was away.
    /// Whatever its part was, it serves nobody from now on and sends nobody on: what its guests had
    /// acknowledged may not be there. A part that it has in `generation` or later stays as it is.
    pub fn depose(&mut self, now: Nanos, generation: Generation) -> Result<Control> {
        self.must_answer()?;
        let sb = &mut self.meta.as_mut().ok_or_else(no_meta)?.superblock;
        match sb.role {
            Role::Owner { generation: g, .. } if g >= generation => {
                Err(fenced("depose in favour of", generation, g))
            }
            Role::Relinquished { generation: g, .. } if g >= generation => {
                self.control_at_current()
            }
            Role::Standby if sb.seen >= generation => self.control_at_current(),
            Role::Standby | Role::Owner { .. } | Role::Relinquished { .. } => {
                sb.seen = sb.seen.max(generation);
                self.step_down(now);
                self.change()
            }
        }
    }

    /// Whether another node took the volume over from this one without its consent, since it was opened
    /// here. Nobody answers those whom it served.
    #[must_use]
    pub fn is_replaced(&self) -> bool {
        self.meta.as_ref().is_some_and(|m| m.replaced)
    }

    /// Own the volume in a later generation, with what is here: a cutover to a node that is gone was given up.
    /// Whatever was to be told in the generation between is fenced by this one.
    pub fn renew(&mut self, generation: Generation) -> Result<Control> {
        self.must_own("go on as the owner")?;
        let sb = &mut self.meta.as_mut().ok_or_else(no_meta)?.superblock;
        if generation <= sb.seen {
            return Err(fenced("go on as the owner in", generation, sb.seen));
        }
        if let Role::Owner {
            generation: own, ..
        } = &mut sb.role
        {
            *own = generation;
        }
        sb.seen = generation;
        self.change()
    }

    /// This node gave the volume away and sends its guests on to a node that is gone: what they were told
    /// there is not here, so they are sent away before this node takes the volume back.
    pub fn send_away(&mut self, now: Nanos) {
        let Some(meta) = &mut self.meta else { return };
        if meta.superblock.role.is_owner() || !self.forwarding {
            return;
        }
        meta.replaced = true;
        self.forwarding = false;
        self.reopen(now);
    }

    fn step_down(&mut self, now: Nanos) {
        let Some(meta) = &mut self.meta else { return };
        meta.superblock.role = Role::Standby;
        meta.replaced = true;
        if let Some((.., control)) = self.after_sync.take() {
            self.actions
                .push_back(Action::ControlDone(control, Err(EIO)));
        }
        self.forwarding = false;
        self.mirror_off(now);
        self.drop_live(|_| true);
        self.epochs.cursors.clear();
        self.reopen(now);
    }

    /// Take the volume over in `generation`, with the content of `epoch`. Nothing may be in flight.
    pub fn activate(&mut self, generation: Generation, epoch: Epoch) -> Result<Control> {
        self.must_answer()?;
        let meta = self.meta.as_mut().ok_or_else(no_meta)?;
        let sb = &mut meta.superblock;
        match sb.role.activate(sb.seen, generation, epoch)? {
            Step::Again => return self.control_at_current(),
            Step::Take => {}
        }
        if self.admitted > 0 {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("activate generation {generation}: I/O of a former ownership is in flight"),
            ));
        }
        sb.role = Role::Owner {
            generation,
            since: epoch,
        };
        sb.seen = generation;
        sb.ceiling = Epoch(epoch.0 + EPOCHS_RESERVED);
        self.epochs.restart(epoch);
        self.epochs.cursors.push(Cursor {
            name: CursorName::FormerOwner,
            epoch,
            seeded: true,
        });
        meta.intents.sweep(|_| false);
        meta.replaced = false;
        self.forwarding = false;
        // An earlier ownership ended frozen.
        self.frozen = false;
        let control = self.change()?;
        if let Some(meta) = &mut self.meta {
            meta.believed = meta.store.version();
        }
        Ok(control)
    }

    /// Give the volume away: durably, once everything in the image is durable. Frozen and drained it
    /// must be, and `to` must have committed `epoch`, the last. There is no way back.
    pub fn relinquish(
        &mut self,
        to: &NodeName,
        generation: Generation,
        epoch: Epoch,
    ) -> Result<Control> {
        let meta = self.meta.as_ref().ok_or_else(no_meta)?;
        let sb = &meta.superblock;
        if sb.role.relinquish(sb.seen, to, generation, epoch)? == Step::Again {
            return self.control_at_current();
        }
        let replica = CursorName::Replica(to.clone());
        let has = |c: &Cursor| c.seeded && c.epoch == epoch;
        if !self.epochs.cursor(&replica).is_some_and(has) || !self.epochs.is_clean_since(epoch) {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!(
                    "relinquish to {to}: it does not have everything as of epoch {epoch}; freeze, \
                     rotate and commit first"
                ),
            ));
        }
        if self.epochs.open() != epoch.next() {
            // The target's epochs go on from this one, and a number must mean one point in time only.
            return Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "relinquish to {to}: epoch {epoch} was the last, but another replica's has been \
                     closed since; rotate and commit once more"
                ),
            ));
        }
        self.after_sync(AfterSync::Relinquish {
            to: to.clone(),
            generation,
            epoch,
        })
    }

    /// Send requests to the other node (true) or hold them (false). Only a node that is not the owner
    /// can.
    pub fn forward(&mut self, now: Nanos, on: bool) -> Result<()> {
        let role = self.role();
        if on && role.is_owner() {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("forward requests: this node is the volume's {role}"),
            ));
        }
        self.forwarding = on && !self.poisoned;
        self.release(now);
        Ok(())
    }

    /// Record that everything is in order, in an image with this mark. Frozen and drained it must be; it
    /// stays shut.
    pub fn close(&mut self, mark: ImageMark) -> Result<Control> {
        self.after_sync(AfterSync::Close(mark))
    }

    /// The answer to [`Action::SyncMeta`]. A failure poisons the volume.
    pub fn meta_synced(&mut self, now: Nanos, result: Outcome) {
        if self.poisoned {
            return;
        }
        if result.is_err() {
            return self.poison();
        }
        let Some(meta) = &mut self.meta else { return };
        meta.store.synced(&mut meta.intents);
        if meta.is_believed()
            && let Some(mark) = meta.adopted.take()
        {
            meta.superblock.mark = mark;
            meta.superblock.doubted = meta.superblock.seen;
            meta.believed = meta.store.change();
        }
        if !meta.announced && meta.is_believed() {
            meta.announced = true;
            self.actions.push_back(Action::Opened);
        }
        let areas = self.config.size.div_ceil(AREA_BYTES);
        if meta.intents.wanted().len() > FORMER_AREAS.max(areas / FORMER_SHARE)
            && self.epochs.cursor(&CursorName::FormerOwner).is_some()
        {
            let stays = |c: &Cursor| c.name != CursorName::FormerOwner;
            self.epochs.cursors.retain(stays);
            meta.superblock.cursors.clone_from(&self.epochs.cursors);
            meta.store.change();
        }
        if meta.store.oldest_cursor().is_none()
            && self.epochs.cursors.is_empty()
            && !meta.intents.wanted().is_empty()
        {
            // Nobody is left to differ from.
            meta.intents.sweep(|_| false);
            self.epochs.forget();
        }
        self.answer_controls();
        self.announce();
        self.notice_passed(now);
        self.wake_intents();
        if !self.open {
            self.reopen(now);
        }
    }

    /// The superblock changed: a control call to be answered when that is durable.
    pub(crate) fn change(&mut self) -> Result<Control> {
        self.changed();
        self.control_at_current()
    }

    fn changed(&mut self) {
        if let Some(meta) = &mut self.meta {
            meta.superblock.cursors.clone_from(&self.epochs.cursors);
            meta.superblock.clean = false;
            meta.store.change();
        }
    }

    /// As [`Volume::control_at_current`], and unless this node is the owner, when none of its guests'
    /// requests is beyond the gate any more.
    fn control_when_quiet(&mut self) -> Result<Control> {
        let control = self.new_control()?;
        let meta = self.meta.as_mut().ok_or_else(no_meta)?;
        meta.waiting.push(Waiting {
            version: meta.store.version(),
            round: 0,
            quiet: !meta.superblock.role.is_owner(),
            control,
        });
        self.answer_controls();
        Ok(control)
    }

    /// Answer when everything changed so far is durable.
    fn control_at_current(&mut self) -> Result<Control> {
        let control = self.new_control()?;
        let meta = self.meta.as_mut().ok_or_else(no_meta)?;
        let version = meta.store.version();
        if version <= meta.store.durable() {
            self.actions.push_back(Action::ControlDone(control, Ok(())));
        } else {
            meta.waiting.push(Waiting {
                version,
                round: 0,
                quiet: false,
                control,
            });
        }
        Ok(control)
    }

    /// As [`Volume::change`], but answered only when everything that the image holds by now is
    /// durable, too.
    pub(crate) fn change_and_sync(&mut self) -> Result<Control> {
        let control = self.change()?;
        if !self.flush.is_clean() {
            let round = self.flush.want();
            let waiting = self.meta.iter_mut().flat_map(|m| &mut m.waiting);
            waiting
                .filter(|w| w.control == control)
                .for_each(|w| w.round = round);
        }
        Ok(control)
    }

    /// Answer the calls for which everything is durable that they wait for.
    pub(crate) fn answer_controls(&mut self) {
        let Some(meta) = &mut self.meta else { return };
        let (durable, finished) = (meta.store.durable(), self.flush.finished());
        let quiet = self.admitted == 0;
        let done =
            |w: &mut Waiting| w.version <= durable && w.round <= finished && (quiet || !w.quiet);
        let done = meta.waiting.extract_if(.., done);
        self.actions
            .extend(done.map(|w| Action::ControlDone(w.control, Ok(()))));
    }

    fn new_control(&mut self) -> Result<Control> {
        self.must_answer()?;
        let meta = self.meta.as_mut().ok_or_else(no_meta)?;
        meta.last_control += 1;
        Ok(Control(meta.last_control))
    }

    /// Refuse a control call that could not be answered.
    pub(crate) fn must_answer(&self) -> Result<()> {
        let meta = self.meta.as_ref().ok_or_else(no_meta)?;
        if self.poisoned {
            return Err(Error::new(
                ErrorKind::Poisoned,
                "an fdatasync failed and the volume has stopped: check the disk, then restart the \
                 node",
            ));
        }
        if meta.waiting.len() >= CONTROLS_MAX {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("{CONTROLS_MAX} control calls wait for the metadata already"),
            ));
        }
        Ok(())
    }

    /// Refuse a control call that only an owner can carry out.
    pub(crate) fn must_own(&self, what: &str) -> Result<()> {
        self.must_answer()?;
        let role = self.role();
        if role.is_owner() && self.after_sync.is_none() && !self.closed {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::NotOwner,
            format!("{what}: this node's part is {role}, or is being given up"),
        ))
    }

    /// Write a record as soon as the whole image is durable; the gate stays shut from now on.
    fn after_sync(&mut self, record: AfterSync) -> Result<Control> {
        self.must_answer()?;
        if !self.frozen || self.admitted > 0 || self.after_sync.is_some() {
            return Err(Error::new(
                ErrorKind::Busy,
                "relinquish or close: the volume is not frozen and drained, or is being closed",
            ));
        }
        let control = self.new_control()?;
        // What the mirror has is committed by now, and it answers no flush any more.
        self.mirror_off(Nanos::ZERO);
        if self.flush.is_clean() {
            self.record(Nanos::ZERO, record, control);
        } else {
            let round = self.flush.want();
            self.after_sync = Some((round, record, control));
        }
        Ok(control)
    }

    /// The image is durable: write the record.
    pub(crate) fn record(&mut self, now: Nanos, record: AfterSync, control: Control) {
        self.mirror_off(now);
        self.drop_live(|_| true);
        let Some(meta) = &mut self.meta else { return };
        match record {
            AfterSync::Relinquish {
                to,
                generation,
                epoch,
            } => {
                self.epochs.cursors.clear();
                meta.superblock.seen = generation;
                meta.superblock.role = Role::Relinquished {
                    generation,
                    to,
                    epoch,
                };
            }
            AfterSync::Close(mark) => {
                self.closed = true;
                meta.superblock.mark = mark;
                let epochs = &self.epochs;
                meta.intents.sweep(|a| epochs.touches(a));
                meta.superblock.clean = true;
            }
        }
        meta.superblock.cursors.clone_from(&self.epochs.cursors);
        let version = meta.store.change();
        meta.waiting.push(Waiting {
            version,
            round: 0,
            quiet: false,
            control,
        });
    }

    /// The volume was poisoned: so answer everybody who waits for the metadata.
    pub(crate) fn fail_controls(&mut self) {
        let pending = self.after_sync.take().map(|(.., control)| control);
        let waiting = self.meta.iter_mut().flat_map(|m| m.waiting.drain(..));
        for control in waiting.map(|w| w.control).chain(pending) {
            self.actions
                .push_back(Action::ControlDone(control, Err(EIO)));
        }
    }
}

fn no_meta() -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "this volume is served without metadata: it has no replicas, checkpoints or other owners; \
         import it into a node to use those",
    )
}
