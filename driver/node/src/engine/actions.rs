//! What volumes ask of their shard: held requests that may go on, syncs, metadata, old content to
//! be saved; and their coming and going.

use super::VOLUME_REQUESTS_MAX;
use super::message::{ConnectionIndex, VolumeIndex};
use super::request::Requests;
use super::shard::EngineShard;
use super::volume_cell::{Leaving, Meta, Save, VolumeCell, VolumeFiles, Waiters};
use block::{AlignedBuf, Error, ErrorKind, Result};
use ring::{Done, Ring};
use storage::{Image, Progress, Work};
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;
use volume::{Action, Outcome};

/// Names of the shard's operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Recv(ConnectionIndex),
    Send(ConnectionIndex),
    Io { volume: VolumeIndex, slot: u32 },
    SyncImage(VolumeIndex),
    SyncMeta(VolumeIndex),
    Save { volume: VolumeIndex, save: u32 },
    LinkRecv(VolumeIndex),
    LinkSend(VolumeIndex),
}

impl Token {
    pub(super) fn encode(self) -> ring::Token {
        let pack = |kind: u64, a: u32, b: u32| kind << 56 | u64::from(a) << 32 | u64::from(b);
        match self {
            Token::Recv(c) => pack(0, 0, c),
            Token::Send(c) => pack(1, 0, c),
            Token::Io { volume, slot } => pack(2, volume, slot),
            Token::SyncImage(v) => pack(3, v, 0),
            Token::SyncMeta(v) => pack(4, v, 0),
            Token::Save { volume, save } => pack(5, volume, save),
            Token::LinkRecv(v) => pack(6, v, 0),
            Token::LinkSend(v) => pack(7, v, 0),
        }
    }

    pub(super) fn decode(token: ring::Token) -> Token {
        let (kind, a, b) = (token >> 56, (token >> 32) as u32 & 0xff_ffff, token as u32);
        match kind {
            0 => Token::Recv(b),
            1 => Token::Send(b),
            2 => Token::Io { volume: a, slot: b },
            3 => Token::SyncImage(a),
            4 => Token::SyncMeta(a),
            6 => Token::LinkRecv(a),
            7 => Token::LinkSend(a),
            5 => Token::Save { volume: a, save: b },
            _ => unreachable!("no operation has token {token:#x}"),
        }
    }
}

impl EngineShard {
    pub(super) fn add_volume(
        &mut self,
        ring: &mut Ring,
        files: VolumeFiles,
        answer: oneshot::Sender<Result<VolumeIndex>>,
    ) {
        let image = Image::attach(files.image, ring);
        let meta = match files.meta {
            None => Meta::None,
            Some((pages, fd)) => Meta::File {
                pages,
                file: ring.add_file(fd),
                failed: None,
            },
        };
        let v = self.volumes.insert(VolumeCell {
            volume: files.volume,
            image,
            meta,
            requests: Requests::new(VOLUME_REQUESTS_MAX),
            saves: slab::Slab::new(),
            waiters: Waiters::default(),
            latency: files.latency,
            activity: files.activity,
            extents_file: files.extents_file,
            links: 0,
            standing: files.standing,
            forwarder: None,
            mirror: None,
            leaving: Leaving::No,
            is_touched: false,
            ending: 0,
            syncing: false,
            meta_syncing: false,
        });
        self.touch(v as VolumeIndex);
        // Nobody may wait for it any more; the volume stays until it is removed.
        let _ = answer.send(Ok(v as VolumeIndex));
    }

    /// Carry out everything that the volume asks for.
    pub(super) fn act(&mut self, ring: &mut Ring, v: VolumeIndex) {
        let Some(cell) = self.volumes.get_mut(v as usize) else {
            return;
        };
        cell.is_touched = false;
        cell.standing.set(&cell.volume);
        self.cut_links(ring, v);
        while let Some(action) = self.volumes[v as usize].volume.poll() {
            self.act_one(ring, v, action);
        }
        self.issue_deferred(ring, v);
        self.tend_forwarder(ring, v);
        self.forward_on(ring, v);
        self.take_turns(ring, v);
        self.leave_on(ring, v);
    }

    /// Start the reads whose turn has come. Only one that ended, or came short and waits again, lets others
    /// begin, and that has touched the volume.
    fn take_turns(&mut self, ring: &mut Ring, v: VolumeIndex) {
        let cell = &mut self.volumes[v as usize];
        cell.image.take_turns(ring);
        let ending = cell.image.ending_together();
        self.ending += ending;
        self.ending -= std::mem::replace(&mut cell.ending, ending);
    }

    fn act_one(&mut self, ring: &mut Ring, v: VolumeIndex, action: Action) {
        let cell = &mut self.volumes[v as usize];
        let now = ring.now();
        match action {
            Action::Issue(id) => self.issue(ring, v, id.0),
            Action::Reply(id, outcome) => self.reply(ring, v, id.0, outcome),
            Action::Forward(id) => self.forward(ring, v, id.0),
            Action::SyncImage => {
                cell.syncing = true;
                cell.image.sync(ring, Token::SyncImage(v).encode());
            }
            Action::WriteMeta { slot, bytes } => {
                if let Meta::File { pages, failed, .. } = &mut cell.meta
                    && let Err(errno) = pages.store(slot, &bytes)
                {
                    *failed = Some(errno);
                }
            }
            Action::SyncMeta => match &cell.meta {
                Meta::None => cell.volume.meta_synced(now, Ok(())),
                Meta::File { file, .. } => {
                    cell.meta_syncing = true;
                    ring.sync(*file, Token::SyncMeta(v).encode());
                }
            },
            Action::SaveOld { ticket, extent } => {
                let span = cell.save_span(extent);
                let mut io = cell.image.prepare(Work::Read, span);
                // Outside the pool: the volume bounds these reads itself, and keeps what they find.
                io.set_buffer(AlignedBuf::zeroed(io.buffer_bytes()));
                let save = cell.saves.insert(Save { ticket, io }) as u32;
                let token = Token::Save { volume: v, save }.encode();
                if let Progress::Ended(outcome) =
                    cell.image
                        .start(ring, &mut cell.saves[save as usize].io, token)
                {
                    self.saved(v, save, outcome);
                }
            }
            Action::Mirror(id) => self.mirror(ring, v, id),
            Action::MirrorFlush => self.mirror_flush(ring, v),
            Action::MirrorOff => self.mirror_ended(ring, v),
            Action::Settled(snapshot) => cell.waiters.settle(&snapshot),
            Action::Opened => cell.waiters.opened(),
            Action::Drained => {
                for waiter in cell.waiters.drained.drain(..) {
                    let _ = waiter.send(());
                }
            }
            Action::ControlDone(control, outcome) => {
                if let Some(waiter) = cell.waiters.controls.remove(&control) {
                    let _ = waiter.send(outcome);
                }
            }
            Action::Poisoned => tracing::error!(
                "an fdatasync failed: the volume stops, nothing is known about what is durable; \
                 check the disk and the image, then serve it again"
            ),
        }
    }

    /// One of the operations that actions started has completed.
    pub(super) fn action_done(&mut self, ring: &mut Ring, token: Token, done: Done) {
        let now = ring.now();
        let result: Outcome = done.result.map(drop);
        match token {
            Token::SyncImage(v) => {
                let cell = &mut self.volumes[v as usize];
                cell.syncing = false;
                match &mut cell.leaving {
                    Leaving::Syncing(waiters) => match result {
                        Ok(()) => {
                            let waiters = std::mem::take(waiters);
                            cell.leaving = Leaving::Recording(waiters, cell.record_closed());
                        }
                        Err(e) => {
                            for waiter in waiters.drain(..) {
                                let _ = waiter.send(Err(Error::errno("sync the image", e)));
                            }
                            return self.remove_volume(ring, v);
                        }
                    },
                    Leaving::No | Leaving::Closing(_) | Leaving::Recording(..) => {
                        cell.volume.image_synced(now, result);
                    }
                }
                self.touch(v);
            }
            Token::SyncMeta(v) => {
                let cell = &mut self.volumes[v as usize];
                cell.meta_syncing = false;
                let stored = match &cell.meta {
                    Meta::File {
                        failed: Some(e), ..
                    } => Err(*e),
                    Meta::File { pages, .. } if pages.faulted() => Err(libc::EIO),
                    Meta::File { .. } | Meta::None => Ok(()),
                };
                cell.volume.meta_synced(now, stored.and(result));
                self.touch(v);
            }
            Token::Save { volume, save } => {
                let cell = &mut self.volumes[volume as usize];
                let io = &mut cell.saves[save as usize].io;
                let progress = cell.image.completed(ring, io, done);
                self.touch(volume);
                if let Progress::Ended(outcome) = progress {
                    self.saved(volume, save, outcome);
                }
            }
            Token::Recv(_)
            | Token::Send(_)
            | Token::Io { .. }
            | Token::LinkRecv(_)
            | Token::LinkSend(_) => {
                unreachable!("handled by the shard")
            }
        }
    }

    fn saved(&mut self, v: VolumeIndex, save: u32, outcome: Outcome) {
        let cell = &mut self.volumes[v as usize];
        let mut save = cell.saves.remove(save as usize);
        // Blocks begin on units, so only the end of the last one is clipped.
        let len = save.io.payload().len();
        let old = match (outcome, save.io.take_buffer()) {
            (Ok(()), Some(mut buf)) => {
                buf.resize(len);
                Ok(buf)
            }
            (Err(e), _) => Err(e),
            (Ok(()), None) => Err(libc::EIO),
        };
        cell.volume.saved(save.ticket, old);
        self.touch(v);
    }

    /// Begin to remove a volume.
    pub(super) fn leave(
        &mut self,
        ring: &mut Ring,
        v: VolumeIndex,
        waiter: Option<oneshot::Sender<Result<()>>>,
    ) {
        let Some(cell) = self.volumes.get_mut(v as usize) else {
            if let Some(waiter) = waiter {
                let gone = Error::new(ErrorKind::NotFound, "the volume is not on its shard");
                let _ = waiter.send(Err(gone));
            }
            return;
        };
        match &mut cell.leaving {
            Leaving::No => cell.leaving = Leaving::Closing(waiter.into_iter().collect()),
            Leaving::Closing(all) | Leaving::Syncing(all) | Leaving::Recording(all, _) => {
                all.extend(waiter);
            }
        }
        let own = |c: &super::connection::Connection| c.volume == v;
        let all: Vec<_> = self
            .connections
            .iter()
            .filter(|(_, c)| own(c))
            .map(|(c, _)| c)
            .collect();
        for c in all {
            self.drain(ring, c as ConnectionIndex);
        }
        self.touch(v);
    }

    /// Once nothing of a leaving volume is in flight, sync it for the last time and have that recorded.
    fn leave_on(&mut self, ring: &mut Ring, v: VolumeIndex) {
        let cell = &mut self.volumes[v as usize];
        let busy = cell.syncing || cell.meta_syncing || !cell.saves.is_empty();
        let waiters = match &mut cell.leaving {
            Leaving::Closing(waiters) => waiters,
            Leaving::Recording(waiters, recorded) if !busy => {
                let outcome = match recorded.as_mut().map(oneshot::Receiver::try_recv) {
                    Some(Err(TryRecvError::Empty)) => return,
                    Some(Ok(outcome)) => outcome,
                    Some(Err(TryRecvError::Closed)) | None => Ok(()),
                };
                for waiter in waiters.drain(..) {
                    let recorded = outcome.map_err(|e| Error::errno("record the closing", e));
                    let _ = waiter.send(recorded);
                }
                return self.remove_volume(ring, v);
            }
            _ => return,
        };
        let connected = self.connections.iter().any(|(_, c)| c.volume == v);
        if connected || cell.requests.in_use() > 0 || busy {
            return self.forsake(ring, v);
        }
        if cell.forwarder.is_some() {
            return self.unlink(ring, v);
        }
        cell.leaving = Leaving::Syncing(std::mem::take(waiters));
        cell.image.sync(ring, Token::SyncImage(v).encode());
    }

    fn remove_volume(&mut self, ring: &mut Ring, v: VolumeIndex) {
        let cell = self.volumes.remove(v as usize);
        self.ending -= cell.ending;
        cell.image.detach(ring);
        if let Meta::File { file, .. } = cell.meta {
            ring.remove_file(file);
        }
        self.touched.retain(|other| *other != v);
    }
}

impl VolumeCell {
    /// Have the volume record that it was closed, and by what mark its image is known again. A volume
    /// without metadata has nobody to tell, and one that was poisoned must not say so.
    fn record_closed(&mut self) -> Option<oneshot::Receiver<Outcome>> {
        let mark = storage::mark(&self.extents_file).ok()?;
        self.volume.freeze();
        let control = self.volume.close(mark).ok()?;
        let (answer, recorded) = oneshot::channel();
        self.waiters.controls.insert(control, answer);
        Some(recorded)
    }

    pub(super) fn is_leaving(&self) -> bool {
        !matches!(self.leaving, Leaving::No)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_read_back() {
        for token in [
            Token::Recv(7),
            Token::Send(255),
            Token::Io {
                volume: 3,
                slot: 2047,
            },
            Token::SyncImage(3),
            Token::SyncMeta(0),
            Token::Save {
                volume: 9,
                save: u32::MAX,
            },
        ] {
            assert_eq!(Token::decode(token.encode()), token);
        }
    }
}
