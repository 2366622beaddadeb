//! Control calls on a disk that answers when told to: freezing, hand-over, fencing, poison, opening.

#![allow(clippy::unwrap_used)] // a test program

mod depose;
mod growth;

use block::{Block, Epoch, ErrorKind, Generation, ImageMark, Nanos, Span, VolumeId};
use std::time::Instant;
use volume::{
    Action, Admission, Completion, Config, Control, CursorName, Identity, Op, Outcome, Request,
    RequestId, Role, Start, Volume, meta_bytes,
};

const NOW: Nanos = Nanos(1 << 40);
const OK: Completion = Completion::Reply(Ok(()));

/// A volume and its metadata file; syncs succeed at once unless told otherwise.
struct Node {
    vol: Volume,
    meta: Vec<u8>,
    sync_meta: bool,
    sync_image: bool,
    seen: Vec<Action>,
}

fn config(size: u64) -> Config {
    Config {
        size,
        max_requests: 64,
        align: 512,
        read_only: false,
    }
}

fn owner() -> Role {
    Role::Owner {
        generation: Generation(1),
        since: Epoch(0),
    }
}

impl Node {
    fn new(size: u64, role: Role) -> Node {
        let identity = Identity {
            id: VolumeId([4; 16]),
            name: "v".parse().unwrap(),
            image: String::new(),
        };
        let mut node = Node {
            vol: Volume::create(config(size), identity, role).unwrap(),
            meta: vec![0; meta_bytes(size) as usize],
            sync_meta: true,
            sync_image: true,
            seen: Vec::new(),
        };
        node.run();
        node
    }

    fn run(&mut self) {
        while let Some(action) = self.vol.poll() {
            match action {
                Action::WriteMeta { slot, bytes } => {
                    self.meta[slot as usize * 4096..][..4096].copy_from_slice(&bytes[..]);
                }
                Action::SyncMeta if self.sync_meta => self.vol.meta_synced(NOW, Ok(())),
                Action::SyncImage if self.sync_image => self.vol.image_synced(NOW, Ok(())),
                other => self.seen.push(other),
            }
        }
    }

    fn request(&mut self, id: u32, op: Op, span: Span) -> Admission {
        let id = RequestId(id);
        let fua = false;
        self.vol.submit(NOW, Request { id, op, fua, span })
    }

    fn write(&mut self, id: u32, block: u64) -> Admission {
        self.request(id, Op::Write, Span::new(block * 4096, 4096))
    }

    /// Run, and say how a control call ended, if it did.
    fn ended(&mut self, control: Control) -> Option<Outcome> {
        self.run();
        self.seen.iter().find_map(|a| match a {
            Action::ControlDone(c, result) if *c == control => Some(*result),
            _ => None,
        })
    }

    fn said(&mut self, pattern: impl Fn(&Action) -> bool) -> bool {
        self.run();
        std::mem::take(&mut self.seen).iter().any(pattern)
    }

    fn reopen(&mut self, size: u64) {
        self.vol = Volume::open(config(size), None, &self.meta).unwrap();
        self.seen.clear();
    }
}

fn replica(node: &str) -> CursorName {
    CursorName::Replica(node.parse().unwrap())
}

/// A guest wrote to a volume without replicas, and did not flush. A first replica was added and
/// seeded: it got what the page cache held. Then the power failed, the image lost the write, and no
/// intent said so, because none was needed when it was made: the replica kept, for good, what the
/// source had not. The first cursor is there only when the image is durable.
#[test]
fn a_first_replica_begins_when_what_it_will_copy_is_durable() {
    let mut a = Node::new(1 << 30, owner());
    assert_eq!(a.write(0, 7), Admission::Issue);
    assert_eq!(a.vol.complete(NOW, RequestId(0), Ok(())), OK);
    a.sync_image = false;
    let c = a.vol.add_cursor(replica("n2"), Start::Now).unwrap();
    assert_eq!(a.ended(c), None, "the image is not durable");
    assert!(a.said(|x| matches!(x, Action::SyncImage)));
    a.sync_image = true;
    a.vol.image_synced(NOW, Ok(()));
    assert_eq!(a.ended(c), Some(Ok(())));
    // A second one need not wait: what is not durable is in the first one's maps and intents.
    assert_eq!(a.write(0, 9), Admission::Held);
    assert!(a.said(|x| matches!(x, Action::Issue(_))));
    assert_eq!(a.vol.complete(NOW, RequestId(0), Ok(())), OK);
    a.sync_image = false;
    let c = a.vol.add_cursor(replica("n3"), Start::Now).unwrap();
    assert_eq!(a.ended(c), Some(Ok(())));
}

/// Seed `n2` without content and bring it to the present; the volume is then frozen and drained.
fn ready_to_relinquish(a: &mut Node) -> Epoch {
    let c = a.vol.add_cursor(replica("n2"), Start::Now).unwrap();
    assert_eq!(a.ended(c), Some(Ok(())));
    let c = a.vol.seeded(&replica("n2")).unwrap();
    assert_eq!(a.ended(c), Some(Ok(())));
    a.vol.freeze();
    assert!(a.said(|x| matches!(x, Action::Drained)));
    let snapshot = a.vol.rotate(&replica("n2")).unwrap();
    assert!(a.said(|x| matches!(x, Action::Settled(_))));
    let c = a.vol.committed(&replica("n2"), snapshot.epoch()).unwrap();
    assert_eq!(a.ended(c), Some(Ok(())));
    snapshot.epoch()
}

#[test]
fn a_volume_is_handed_over_and_what_was_held_is_forwarded() {
    let (mut a, mut b) = (
        Node::new(1 << 30, owner()),
        Node::new(1 << 30, Role::Standby),
    );
    assert_eq!(b.write(0, 0), Admission::Held, "a standby answers nobody");
    let epoch = ready_to_relinquish(&mut a);
    assert_eq!(a.write(1, 5), Admission::Held);
    let n2 = "n2".parse().unwrap();

    let fenced = a.vol.relinquish(&n2, Generation(1), epoch).unwrap_err();
    assert_eq!(fenced.kind(), ErrorKind::Fenced);
    let c = a.vol.relinquish(&n2, Generation(2), epoch).unwrap();
    a.vol.thaw(NOW);
    assert_eq!(a.ended(c), Some(Ok(())));
    assert_eq!(
        a.write(2, 5),
        Admission::Held,
        "thawing does not bring it back"
    );
    let again = a.vol.relinquish(&n2, Generation(2), epoch).unwrap();
    assert_eq!(a.ended(again), Some(Ok(())));
    a.reopen(1 << 30);
    a.run();
    assert!(matches!(
        a.vol.role(),
        Role::Relinquished {
            generation: Generation(2),
            ..
        }
    ));

    b.sync_meta = false;
    let c = b.vol.activate(Generation(2), epoch).unwrap();
    assert_eq!(b.ended(c), None);
    assert_eq!(
        b.write(1, 0),
        Admission::Held,
        "not before the record is durable"
    );
    b.sync_meta = true;
    b.vol.meta_synced(NOW, Ok(()));
    assert_eq!(b.ended(c), Some(Ok(())));
    assert!(b.said(|x| matches!(x, Action::Issue(RequestId(0)))));
    let again = b.vol.activate(Generation(2), epoch).unwrap();
    assert_eq!(
        b.ended(again),
        Some(Ok(())),
        "activating twice is activating once"
    );
    let other = b.vol.activate(Generation(2), epoch.next()).unwrap_err();
    assert_eq!(other.kind(), ErrorKind::Fenced);

    assert_eq!(a.write(3, 7), Admission::Held);
    a.vol.forward(NOW, true).unwrap();
    assert!(a.said(|x| matches!(x, Action::Forward(RequestId(3)))));
    assert_eq!(a.write(4, 7), Admission::Forward);
    assert_eq!(
        a.vol.complete(NOW, RequestId(3), Err(28)),
        Completion::Reply(Err(28))
    );

    // The former owner proved its epoch: it need not be seeded.
    let c = b.vol.add_cursor(replica("n1"), Start::At(epoch)).unwrap();
    assert_eq!(b.ended(c), Some(Ok(())));
    let snapshot = b.vol.rotate(&replica("n1")).unwrap();
    assert!(
        snapshot.is_pending(Block(0)),
        "what was written since is not at the former owner"
    );
    assert!(!snapshot.is_pending(Block(9)));
}

#[test]
fn nothing_is_relinquished_that_the_target_lacks() {
    let mut a = Node::new(1 << 30, owner());
    let epoch = ready_to_relinquish(&mut a);
    a.vol.thaw(NOW);
    assert_eq!(a.write(0, 3), Admission::Held, "the area needs an intent");
    assert!(a.said(|x| matches!(x, Action::Issue(RequestId(0)))));
    assert_eq!(a.vol.complete(NOW, RequestId(0), Ok(())), OK);
    a.vol.freeze();
    a.run();
    let e = a
        .vol
        .relinquish(&"n2".parse().unwrap(), Generation(2), epoch);
    assert_eq!(e.unwrap_err().kind(), ErrorKind::Invalid);
    assert!(a.vol.role().is_owner());
}

/// A node takes a volume over, and a guest that was redirected is there before the record is durable: a
/// power cut would leave nobody who had ever owned what it was told. One of the record's two slots is not
/// enough: should it rot, the other still says that this node waits for a copy.
#[test]
fn a_new_owner_answers_nobody_before_its_record_is_durable() {
    let mut b = Node::new(1 << 30, Role::Standby);
    b.sync_meta = false;
    let c = b.vol.activate(Generation(2), Epoch(5)).unwrap();
    assert_eq!(b.ended(c), None);
    assert_eq!(b.request(0, Op::Read, Span::new(0, 512)), Admission::Held);
    // Whatever makes the gate look again finds it shut.
    b.vol.thaw(NOW);
    b.vol.meta_synced(NOW, Ok(()));
    assert_eq!(b.ended(c), None, "one slot of two");
    assert!(!b.said(|x| matches!(x, Action::Issue(_))));
    b.vol.meta_synced(NOW, Ok(()));
    assert_eq!(b.ended(c), Some(Ok(())));
    assert!(b.said(|x| matches!(x, Action::Issue(RequestId(0)))));
}

/// A read was under way when the gate shut. Whoever answers it must still own the volume, and a volume that
/// is recorded as closed in order has nothing in flight.
#[test]
fn nothing_is_given_up_or_closed_while_a_request_is_in_flight() {
    let mut a = Node::new(1 << 30, owner());
    let epoch = ready_to_relinquish(&mut a);
    a.vol.thaw(NOW);
    assert_eq!(a.request(0, Op::Read, Span::new(0, 512)), Admission::Issue);
    a.vol.freeze();
    a.run();
    let n2 = "n2".parse().unwrap();
    let e = a.vol.relinquish(&n2, Generation(2), epoch).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Busy);
    let e = a.vol.close(ImageMark::default()).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Busy);
    assert_eq!(a.vol.complete(NOW, RequestId(0), Ok(())), OK);
    let c = a.vol.relinquish(&n2, Generation(2), epoch).unwrap();
    assert_eq!(a.ended(c), Some(Ok(())));
}

#[test]
fn an_owner_that_sees_a_higher_generation_steps_down_and_acknowledges_no_more() {
    let mut a = Node::new(1 << 30, owner());
    assert_eq!(a.write(0, 0), Admission::Issue);
    let lower = a.vol.observe(NOW, Generation(0)).unwrap_err();
    assert_eq!(lower.kind(), ErrorKind::Fenced);
    let c = a.vol.observe(NOW, Generation(5)).unwrap();
    assert_eq!(a.vol.complete(NOW, RequestId(0), Ok(())), Completion::Held);
    assert_eq!(a.write(1, 1), Admission::Held);
    assert_eq!(a.ended(c), Some(Ok(())));
    let same = a.vol.activate(Generation(5), Epoch(3)).unwrap_err();
    assert_eq!(
        same.kind(),
        ErrorKind::Fenced,
        "somebody else owns generation 5"
    );
    a.reopen(1 << 30);
    a.run();
    assert_eq!((a.vol.role(), a.vol.seen()), (Role::Standby, Generation(5)));
}

#[test]
fn a_failed_sync_of_the_metadata_stops_the_volume_and_answers_everybody() {
    let mut a = Node::new(1 << 30, owner());
    let c = a.vol.add_cursor(replica("n2"), Start::Now).unwrap();
    assert_eq!(a.ended(c), Some(Ok(())));
    a.sync_meta = false;
    assert_eq!(a.request(0, Op::Read, Span::new(0, 512)), Admission::Issue);
    assert_eq!(a.write(1, 0), Admission::Held);
    assert_eq!(a.write(2, 0), Admission::Held);
    let c = a.vol.seeded(&replica("n2")).unwrap();
    a.run();
    a.vol.meta_synced(NOW, Err(5));
    assert_eq!(a.ended(c), Some(Err(5)));
    let replies = a
        .seen
        .iter()
        .filter(|x| matches!(x, Action::Reply(_, Err(5))));
    assert_eq!(replies.count(), 2);
    assert_eq!(
        a.vol.complete(NOW, RequestId(0), Ok(())),
        Completion::Reply(Err(5))
    );
    let read = a.request(3, Op::Read, Span::new(0, 512));
    assert_eq!(read, Admission::Reply(Err(5)), "reads too");
    let e = a.vol.rotate(&replica("n2")).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Poisoned);
}

#[test]
fn requests_that_cannot_be_are_refused_before_they_are_held() {
    let mut a = Node::new(1 << 20, owner());
    a.vol.freeze();
    let end = 1 << 20;
    assert_eq!(
        a.request(0, Op::Write, Span::new(end - 512, 1024)),
        Admission::Reply(Err(28))
    );
    assert_eq!(
        a.request(0, Op::Read, Span::new(end, 512)),
        Admission::Reply(Err(22))
    );
    assert_eq!(
        a.request(0, Op::Trim, Span::new(u64::MAX, 2)),
        Admission::Reply(Err(28))
    );
    assert_eq!(
        a.request(0, Op::Read, Span::new(0, 0)),
        Admission::Reply(Err(22))
    );
    a.vol = Volume::ephemeral(Config {
        read_only: true,
        ..config(end)
    });
    assert_eq!(a.write(0, 0), Admission::Reply(Err(1)));
}

/// A snapshot's old content must not be read while a write of its own epoch is in flight to the same
/// block: the read would find half of it.
#[test]
fn old_content_is_saved_only_after_the_epoch_has_settled() {
    let mut a = Node::new(1 << 30, owner());
    let name = replica("n2");
    let c = a.vol.add_cursor(name.clone(), Start::At(Epoch(0))).unwrap();
    assert_eq!(a.ended(c), Some(Ok(())));
    let _ = a.request(0, Op::Write, Span::new(0, 512));
    assert!(a.said(|x| matches!(x, Action::Issue(RequestId(0)))));
    let snapshot = a.vol.rotate(&name).unwrap();
    assert_eq!(
        a.request(1, Op::Write, Span::new(512, 512)),
        Admission::Held
    );
    assert!(!a.said(|x| matches!(x, Action::SaveOld { .. })));
    assert_eq!(a.vol.complete(NOW, RequestId(0), Ok(())), OK);
    a.run();
    let Some(Action::SaveOld { ticket, .. }) = a
        .seen
        .iter()
        .find(|x| matches!(x, Action::SaveOld { .. }))
        .cloned()
    else {
        panic!("the old content is read once the epoch has settled");
    };
    a.vol
        .saved(ticket, Ok(block::AlignedBuf::copy_of(&[7; 4096])));
    assert!(a.said(|x| matches!(x, Action::Issue(RequestId(1)))));
    assert_eq!(snapshot.saved(Block(0)).unwrap()[..], [7; 4096]);
}

/// After a crash an epoch number that was given out must not be given out again, or a replica that
/// has the first would be taken for one that has the second.
#[test]
fn no_epoch_is_given_out_that_is_not_reserved_on_disk() {
    let mut a = Node::new(1 << 30, owner());
    let name = replica("n2");
    let c = a.vol.add_cursor(name.clone(), Start::Now).unwrap();
    assert_eq!(a.ended(c), Some(Ok(())));
    a.sync_meta = false;
    let mut last = Epoch(0);
    for _ in 0..200 {
        let epoch = a.vol.rotate(&name).unwrap().epoch();
        if a.said(|x| matches!(x, Action::Settled(_))) {
            last = epoch;
        }
        a.vol.abandon(&name, epoch);
    }
    assert!(last > Epoch(20), "a rotation seldom waits");
    a.reopen(1 << 30);
    assert!(
        a.vol.open_epoch() > last,
        "epoch {last} was given out before the crash"
    );
}

#[test]
fn the_wrong_image_or_metadata_is_refused_with_a_remedy() {
    let a = Node::new(1 << 30, owner());
    let e = Volume::open(config(1 << 29), None, &a.meta).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Corrupt);
    assert!(e.context().contains("put the right image back"), "{e}");
    let e = Volume::open(config(1 << 30), Some(VolumeId([5; 16])), &a.meta).unwrap_err();
    assert!(
        e.context().contains("put the right metadata file back"),
        "{e}"
    );
}

#[test]
fn a_tebibyte_with_every_area_suspect_opens_well_under_a_second() {
    let size = 1 << 40;
    let mut a = Node::new(size, owner());
    let c = a.vol.add_cursor(replica("n2"), Start::Now).unwrap();
    assert_eq!(a.ended(c), Some(Ok(())));
    let _ = a.request(0, Op::Trim, Span::new(0, size));
    a.run();
    let begin = Instant::now();
    a.reopen(size);
    a.run();
    let took = begin.elapsed();
    assert!(took.as_millis() < 500, "{took:?}");
    assert_eq!(a.vol.intents().unwrap().len(), size / block::AREA_BYTES);
    let snapshot = a.vol.rotate(&replica("n2")).unwrap();
    assert!(snapshot.is_pending(Block(1 << 27)), "all of it may differ");
    assert!(a.vol.map_memory() <= 32 << 20);
}

#[test]
fn an_orderly_close_leaves_intents_only_where_a_replica_lacks_something() {
    let mut a = Node::new(1 << 30, owner());
    let epoch = ready_to_relinquish(&mut a);
    a.vol.thaw(NOW);
    for (id, block) in [(0, 0), (1, 5000)] {
        let _ = a.write(id, block);
        assert!(a.said(|x| matches!(x, Action::Issue(_))));
        assert_eq!(a.vol.complete(NOW, RequestId(id), Ok(())), OK);
        if id == 0 {
            let snapshot = a.vol.rotate(&replica("n2")).unwrap();
            assert!(snapshot.epoch() > epoch);
            a.run();
            let c = a.vol.committed(&replica("n2"), snapshot.epoch()).unwrap();
            assert_eq!(a.ended(c), Some(Ok(())));
        }
    }
    a.vol.freeze();
    a.run();
    let c = a.vol.close(ImageMark::default()).unwrap();
    assert_eq!(a.ended(c), Some(Ok(())));
    a.reopen(1 << 30);
    a.run();
    let areas: Vec<u64> = a.vol.intents().unwrap().iter().map(|a| a.0).collect();
    assert_eq!(areas, [4]);
}

/// An owner with a replica on n2, and a write to block 0 that the replica lacks.
fn written_and_replicated() -> Node {
    let mut a = Node::new(1 << 30, owner());
    let c = a
        .vol
        .add_cursor(replica("n2"), Start::At(Epoch(0)))
        .unwrap();
    assert_eq!(a.ended(c), Some(Ok(())));
    let _ = a.write(0, 0);
    assert!(a.said(|x| matches!(x, Action::Issue(_))));
    assert_eq!(a.vol.complete(NOW, RequestId(0), Ok(())), OK);
    a
}

/// A replica commits everything that was written so far.
fn bring(a: &mut Node, name: &CursorName) {
    let snapshot = a.vol.rotate(name).unwrap();
    a.run();
    let c = a.vol.committed(name, snapshot.epoch()).unwrap();
    assert_eq!(a.ended(c), Some(Ok(())));
}

/// A replica had a write that the source's disk then lost: nobody had flushed it. They differed, and
/// the intent was gone, because the replica had committed. Intents go only after an image sync.
#[test]
fn an_intent_outlives_the_replicas_commit_until_the_image_is_synced() {
    let mut a = written_and_replicated();
    bring(&mut a, &replica("n2"));
    assert_eq!(a.vol.intents().unwrap().len(), 1);
    let deadline = a.vol.deadline().unwrap();
    a.vol.tick(deadline);
    a.run();
    assert!(
        a.vol.intents().unwrap().is_empty(),
        "the volume synced the image by itself"
    );
    assert_eq!(a.vol.deadline(), None);
}

/// A sync of the image was under way; a guest wrote, and its replica committed that before the sync ended.
/// The sync does not cover the write, so the intent stays for the next one.
#[test]
fn an_intent_outlives_a_sync_that_began_before_its_write() {
    let mut a = written_and_replicated();
    a.sync_image = false;
    let _ = a.request(1, Op::Flush, Span::new(0, 0));
    assert!(a.said(|x| matches!(x, Action::SyncImage)));
    let _ = a.write(2, 5000);
    assert!(a.said(|x| matches!(x, Action::Issue(_))));
    assert_eq!(a.vol.complete(NOW, RequestId(2), Ok(())), OK);
    bring(&mut a, &replica("n2"));
    a.vol.image_synced(NOW, Ok(()));
    for minutes in 1..5 {
        a.vol.tick(Nanos(NOW.0 + minutes * 60_000_000_000));
        a.run();
    }
    let areas: Vec<u64> = a.vol.intents().unwrap().iter().map(|a| a.0).collect();
    assert!(areas.contains(&4), "{areas:?}");
}

/// The superblock is kept twice. A change that was answered when one copy held it would be forgotten if that
/// copy rotted: an ownership, a cursor, an epoch that was given out.
#[test]
fn a_change_is_answered_when_either_copy_of_the_superblock_tells_of_it() {
    let mut a = Node::new(1 << 30, owner());
    let start = Start::At(Epoch(0));
    let c = a.vol.add_cursor(replica("n2"), start).unwrap();
    assert_eq!(a.ended(c), Some(Ok(())));
    a.sync_meta = false;
    let c = a.vol.add_cursor(replica("n3"), start).unwrap();
    let mut durable = Vec::new();
    while a.ended(c).is_none() {
        assert!(a.said(|x| matches!(x, Action::SyncMeta)));
        durable.clone_from(&a.meta);
        a.vol.meta_synced(NOW, Ok(()));
    }
    for slot in 0..2 {
        let mut meta = durable.clone();
        meta[slot * 4096..][..4096].fill(0xa5);
        let opened = Volume::open(config(1 << 30), None, &meta).unwrap();
        let known = opened.cursors().iter().any(|c| c.name == replica("n3"));
        assert!(known, "with copy {slot} rotten");
    }
}

/// A volume went from one node to the next and in the end back to the first, which had not been
/// restarted: it owned the volume again and let nobody in, because it was still frozen from the day
/// it had given the volume away.
#[test]
fn a_node_that_gets_a_volume_back_serves_it() {
    let mut a = Node::new(1 << 30, owner());
    let epoch = ready_to_relinquish(&mut a);
    let n2 = "n2".parse().unwrap();
    let c = a.vol.relinquish(&n2, Generation(2), epoch).unwrap();
    assert_eq!(a.ended(c), Some(Ok(())));
    a.vol.forward(NOW, true).unwrap();

    let c = a.vol.activate(Generation(3), Epoch(epoch.0 + 100)).unwrap();
    assert_eq!(a.ended(c), Some(Ok(())));
    assert_eq!(a.write(1, 5), Admission::Held, "the area needs an intent");
    assert!(a.said(|x| matches!(x, Action::Issue(RequestId(1)))));
}

/// After a cutover the copy left behind was compared in full. It is tracked from the moment that the
/// volume is taken over; whoever proves to have that epoch takes the place, and only once.
#[test]
fn the_former_owners_copy_is_tracked_until_it_differs_too_much() {
    let former = |a: &Node| {
        a.vol
            .cursors()
            .iter()
            .any(|c| c.name == CursorName::FormerOwner)
    };
    let mut a = Node::new(1 << 30, Role::Standby);
    let c = a.vol.activate(Generation(2), Epoch(7)).unwrap();
    assert_eq!(a.ended(c), Some(Ok(())));
    let _ = a.write(0, 3);
    assert!(a.said(|x| matches!(x, Action::Issue(RequestId(0)))));
    assert_eq!(a.vol.complete(NOW, RequestId(0), Ok(())), OK);
    // A crash in between: what the intents cover is suspect.
    a.reopen(1 << 30);
    assert!(former(&a));
    let other = a.vol.add_cursor(replica("n3"), Start::At(Epoch(6)));
    assert_eq!(other.unwrap_err().kind(), ErrorKind::NotFound);
    let c = a
        .vol
        .add_cursor(replica("n1"), Start::At(Epoch(7)))
        .unwrap();
    assert_eq!(a.ended(c), Some(Ok(())));
    assert!(!former(&a));
    let snapshot = a.vol.rotate(&replica("n1")).unwrap();
    assert!(snapshot.is_pending(Block(3)));
    assert!(!snapshot.is_pending(Block(4096)));

    let mut b = Node::new(1 << 30, Role::Standby);
    let c = b.vol.activate(Generation(2), Epoch(7)).unwrap();
    assert_eq!(b.ended(c), Some(Ok(())));
    for area in 0..65 {
        assert!(former(&b), "64 of 256 areas are not too much");
        let _ = b.write(area % 8, u64::from(area) * 1024);
        b.run();
        assert_eq!(b.vol.complete(NOW, RequestId(area % 8), Ok(())), OK);
    }
    b.run();
    assert!(!former(&b), "more than a quarter is");
}

/// An image is known again by its mark. Another one is refused, or adopted: then all of it is suspect
/// before the new mark is on disk.
#[test]
fn an_exchanged_image_is_refused_or_all_suspect() {
    let mark = |inode| ImageMark {
        inode,
        born: 2,
        modified: 0,
    };
    let size = 1 << 30;
    let mut a = Node::new(size, owner());
    let c = a
        .vol
        .add_cursor(replica("n2"), Start::At(Epoch(0)))
        .unwrap();
    assert_eq!(a.ended(c), Some(Ok(())));
    let open = |meta: &[u8]| Volume::open(config(size), None, meta).unwrap();
    // Metadata without a mark: the first image that comes is known from then on.
    a.vol = open(&a.meta);
    assert!(!a.vol.know_image(mark(1), false).unwrap());
    a.run();
    a.vol = open(&a.meta);
    let e = a.vol.know_image(mark(9), false).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Corrupt);
    assert!(a.vol.know_image(mark(9), true).unwrap());
    assert_eq!(a.vol.intents().unwrap().len(), size / block::AREA_BYTES);
    // Whatever a crash leaves on the way: the old mark, or the new one and every intent.
    let mut left = vec![a.meta.clone()];
    while let Some(action) = a.vol.poll() {
        match action {
            Action::WriteMeta { slot, bytes } => {
                a.meta[slot as usize * 4096..][..4096].copy_from_slice(&bytes[..]);
                left.push(a.meta.clone());
            }
            Action::SyncMeta => a.vol.meta_synced(NOW, Ok(())),
            _ => {}
        }
    }
    let mut adopted = 0;
    for meta in &left {
        let mut v = open(meta);
        if v.know_image(mark(9), false).is_ok() {
            adopted += 1;
            assert_eq!(v.intents().unwrap().len(), size / block::AREA_BYTES);
        }
    }
    assert!(
        adopted > 0 && adopted < left.len(),
        "{adopted} of {}",
        left.len()
    );
}

/// A connection broke while its sender waited for a rotation to settle. Nobody knew of the snapshot
/// then, nobody abandoned it, and every later rotation for that replica was refused.
#[test]
fn a_rotation_that_nobody_waits_for_any_more_does_not_block_the_next() {
    let mut a = Node::new(1 << 30, owner());
    let c = a.vol.add_cursor(replica("n2"), Start::Now).unwrap();
    assert_eq!(a.ended(c), Some(Ok(())));
    let lost = a.vol.rotate(&replica("n2")).unwrap();
    let next = a.vol.rotate(&replica("n2")).unwrap();
    assert!(lost.is_overrun() && !next.is_overrun());
    assert!(a.said(|x| matches!(x, Action::Settled(s) if s.epoch() == next.epoch())));
    let refused = a.vol.committed(&replica("n2"), lost.epoch()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotFound);
    a.vol.committed(&replica("n2"), next.epoch()).unwrap();
}

/// While a volume was mirrored to one node, an increment for another closed the open epoch. What the
/// mirror had of it was counted under a number that never ended, the next rotation found a mirrored
/// epoch without a write, and the mirror committed that: acknowledged writes were missing from it.
#[test]
fn an_epoch_that_a_mirror_receives_ends_for_nobody_else() {
    let mut a = Node::new(1 << 30, owner());
    for node in ["n2", "n3"] {
        let c = a.vol.add_cursor(replica(node), Start::Now).unwrap();
        assert_eq!(a.ended(c), Some(Ok(())));
        let c = a.vol.seeded(&replica(node)).unwrap();
        assert_eq!(a.ended(c), Some(Ok(())));
    }
    let first = a.vol.mirror_on(&replica("n2")).unwrap();
    assert!(a.said(|x| matches!(x, Action::Settled(_))));
    let refused = a.vol.rotate(&replica("n3")).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Busy);
    let checkpoint = volume::CursorName::Checkpoint("backup".parse().unwrap());
    let refused = a.vol.add_cursor(checkpoint, Start::Now).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Busy);
    a.vol.committed(&replica("n2"), first.epoch()).unwrap();
    assert!(a.vol.rotate(&replica("n2")).unwrap().is_mirrored());
    a.vol.mirror_off(NOW);
    a.vol.rotate(&replica("n3")).unwrap();
}

/// Frozen for a hand-over at epoch 74, the volume closed epoch 75 for a third node, empty as it was.
/// The new owner went on from 74 and its own 75 had writes; the third node said that it had 75, was
/// believed, and never got them.
#[test]
fn no_epoch_is_given_out_after_the_one_that_is_handed_over() {
    let mut a = Node::new(1 << 30, owner());
    let c = a.vol.add_cursor(replica("n3"), Start::Now).unwrap();
    assert_eq!(a.ended(c), Some(Ok(())));
    let epoch = ready_to_relinquish(&mut a);
    let later = a.vol.rotate(&replica("n3")).unwrap();
    let n2 = "n2".parse().unwrap();
    let refused = a.vol.relinquish(&n2, Generation(2), epoch).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Busy);
    a.vol.abandon(&replica("n3"), later.epoch());
    a.vol.thaw(NOW);
    let now = a.write(1, 5) == Admission::Issue;
    let served = now || a.said(|x| matches!(x, Action::Issue(RequestId(1))));
    assert!(served, "the source serves on");
}

/// A mirrored volume was to be relinquished. Its last sync was a round with the mirror, whose sender
/// had ended with the last epoch: the guest was frozen for ever.
#[test]
fn a_mirrored_volume_is_relinquished_without_the_mirror() {
    let mut a = Node::new(1 << 30, owner());
    let c = a.vol.add_cursor(replica("n2"), Start::Now).unwrap();
    assert_eq!(a.ended(c), Some(Ok(())));
    let c = a.vol.seeded(&replica("n2")).unwrap();
    assert_eq!(a.ended(c), Some(Ok(())));
    let first = a.vol.mirror_on(&replica("n2")).unwrap();
    a.run();
    let c = a.vol.committed(&replica("n2"), first.epoch()).unwrap();
    assert_eq!(a.ended(c), Some(Ok(())));
    let _ = a.write(0, 5);
    a.run();
    let _ = a.vol.complete(NOW, RequestId(0), Ok(()));
    a.vol.mirrored(NOW, RequestId(0), Ok(()));
    a.vol.freeze();
    let last = a.vol.rotate(&replica("n2")).unwrap();
    a.run();
    assert!(last.is_mirrored() && last.is_settled());
    let c = a.vol.committed(&replica("n2"), last.epoch()).unwrap();
    assert_eq!(a.ended(c), Some(Ok(())));
    let n2 = "n2".parse().unwrap();
    let c = a.vol.relinquish(&n2, Generation(2), last.epoch()).unwrap();
    assert_eq!(a.ended(c), Some(Ok(())));
}
