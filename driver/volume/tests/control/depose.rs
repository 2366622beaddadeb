//! Owners that were replaced without their consent.

use super::*;

/// Another node took the volume over while this one was away. Whatever its part was, it answers nobody
/// from then on and sends nobody on, also after a restart; a part of that generation or a later one stays.
#[test]
fn a_deposed_node_serves_nobody_whatever_it_was() {
    let size = 1 << 30;
    let n2 = "n2".parse().unwrap();
    let deposed = |a: &mut Node| {
        a.sync_meta = false;
        let c = a.vol.depose(NOW, Generation(3)).unwrap();
        assert_eq!(a.ended(c), None, "not before the record is durable");
        a.sync_meta = true;
        a.vol.meta_synced(NOW, Ok(()));
        assert_eq!(a.ended(c), Some(Ok(())));
        for restarted in [false, true] {
            assert_eq!(a.vol.role(), Role::Standby, "restarted: {restarted}");
            assert_eq!(a.vol.seen(), Generation(3));
            assert_eq!(a.write(5, 5), Admission::Held, "restarted: {restarted}");
            assert!(!a.vol.is_forwarding());
            assert!(!a.said(|x| matches!(x, Action::Issue(_) | Action::Forward(_))));
            a.reopen(size);
            a.run();
        }
    };
    let mut owned = Node::new(size, owner());
    assert_eq!(owned.write(0, 7), Admission::Issue);
    deposed(&mut owned);

    let mut forwards = Node::new(size, owner());
    let epoch = ready_to_relinquish(&mut forwards);
    let c = forwards.vol.relinquish(&n2, Generation(2), epoch).unwrap();
    assert_eq!(forwards.ended(c), Some(Ok(())));
    forwards.vol.forward(NOW, true).unwrap();
    assert_eq!(forwards.write(1, 7), Admission::Forward);
    deposed(&mut forwards);
    assert_eq!(forwards.vol.gave_up(), None, "its image proves nothing now");

    let mut standby = Node::new(size, Role::Standby);
    deposed(&mut standby);
}

#[test]
fn whoever_has_a_part_in_a_generation_is_not_deposed_in_its_favour() {
    let mut a = Node::new(1 << 30, owner());
    let refused = a.vol.depose(NOW, Generation(1)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Fenced);
    assert_eq!(a.write(0, 7), Admission::Issue);
    assert_eq!(a.vol.complete(NOW, RequestId(0), Ok(())), OK);
    let epoch = ready_to_relinquish(&mut a);
    let n2 = "n2".parse().unwrap();
    let c = a.vol.relinquish(&n2, Generation(2), epoch).unwrap();
    assert_eq!(a.ended(c), Some(Ok(())));
    // It gave the volume away for generation 2 itself: its guests are sent on, as they should be.
    let c = a.vol.depose(NOW, Generation(2)).unwrap();
    assert_eq!(a.ended(c), Some(Ok(())));
    assert_eq!(a.vol.gave_up(), Some((Generation(2), epoch)));
    a.vol.forward(NOW, true).unwrap();
    assert_eq!(a.write(0, 7), Admission::Forward);
}

/// A node gave the volume away for a generation that its target has not taken. A source that is behind asks
/// it, and may be that very target: were it told the offered generation, it would refuse its own.
#[test]
fn a_generation_that_was_only_offered_is_told_to_nobody() {
    let mut a = Node::new(1 << 30, owner());
    assert_eq!(a.vol.last_owned(), Generation(1));
    let epoch = ready_to_relinquish(&mut a);
    let n2 = "n2".parse().unwrap();
    let c = a.vol.relinquish(&n2, Generation(2), epoch).unwrap();
    assert_eq!(a.ended(c), Some(Ok(())));
    assert_eq!(a.vol.seen(), Generation(2));
    assert_eq!(a.vol.last_owned(), Generation(1));
    // Somebody who owns it in that generation has spoken: now it is known.
    let c = a.vol.observe(NOW, Generation(3)).unwrap();
    assert_eq!(a.ended(c), Some(Ok(())));
    assert_eq!(a.vol.last_owned(), Generation(3));
}

/// A node gave the volume away, and while it was down somebody put another file in the image's place and had
/// it adopted. That file is not the epoch that was handed over: it would be taken for a copy that needs no
/// comparison.
#[test]
fn an_image_that_was_exchanged_is_not_what_was_given_up() {
    let size = 1 << 30;
    let mark = |inode| ImageMark {
        inode,
        born: 2,
        modified: 0,
    };
    let mut a = Node::new(size, owner());
    a.reopen(size);
    assert!(!a.vol.know_image(mark(1), false).unwrap());
    a.run();
    let epoch = ready_to_relinquish(&mut a);
    let n2 = "n2".parse().unwrap();
    let c = a.vol.relinquish(&n2, Generation(2), epoch).unwrap();
    assert_eq!(a.ended(c), Some(Ok(())));
    a.reopen(size);
    assert!(!a.vol.know_image(mark(1), false).unwrap());
    a.run();
    assert_eq!(a.vol.gave_up(), Some((Generation(2), epoch)));
    a.reopen(size);
    assert!(a.vol.know_image(mark(9), true).unwrap());
    a.run();
    assert_eq!(a.vol.gave_up(), None);
}

/// A disk was slow, a guest's writes were on their way to it or waited for their intents, and the owner heard
/// that it had been replaced. The new owner was let in at once: it compared the copy, sent what differed, and the
/// old writes landed over that. The copy said that it was consistent.
#[test]
fn a_new_owner_is_let_in_when_the_last_write_of_the_former_ownership_has_ended() {
    let mut a = Node::new(1 << 30, owner());
    let c = a.vol.add_cursor(replica("n2"), Start::Now).unwrap();
    assert_eq!(a.ended(c), Some(Ok(())));
    assert_eq!(a.write(0, 0), Admission::Held);
    assert!(a.said(|x| matches!(x, Action::Issue(RequestId(0)))));
    assert_eq!(a.write(1, 1 << 15), Admission::Held, "for its intent");
    let c = a.vol.observe(NOW, Generation(5)).unwrap();
    assert_eq!(a.ended(c), None);
    assert!(a.said(|x| matches!(x, Action::Issue(RequestId(1)))));
    let again = a.vol.observe(NOW, Generation(5)).unwrap();
    assert_eq!(a.vol.complete(NOW, RequestId(1), Ok(())), Completion::Held);
    assert_eq!((a.ended(c), a.ended(again)), (None, None));
    assert_eq!(a.vol.complete(NOW, RequestId(0), Ok(())), Completion::Held);
    assert_eq!((a.ended(c), a.ended(again)), (Some(Ok(())), Some(Ok(()))));
}

/// A cutover's target was gone for good before the volume was given away, and the owner goes on. What was to be
/// told in the generation between is refused from then on, also after a restart.
#[test]
fn an_owner_that_goes_on_in_a_later_generation_gives_away_in_none_between() {
    let size = 1 << 30;
    let mut a = Node::new(size, owner());
    let epoch = ready_to_relinquish(&mut a);
    let c = a.vol.renew(Generation(3)).unwrap();
    assert_eq!(a.ended(c), Some(Ok(())));
    let n2 = "n2".parse().unwrap();
    let late = a.vol.relinquish(&n2, Generation(2), epoch).unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Fenced);
    let again = a.vol.renew(Generation(3)).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Fenced);
    a.reopen(size);
    a.run();
    assert_eq!(a.vol.owned(), Some(Generation(3)));
    assert_eq!(a.vol.seen(), Generation(3));
    let mut standby = Node::new(size, Role::Standby);
    assert_eq!(
        standby.vol.renew(Generation(3)).unwrap_err().kind(),
        ErrorKind::NotOwner
    );
}

/// The volume was given away to a node that is gone. Guests that wait were told nothing since, and are served when
/// it is taken back. Those that were sent on may have been, and are sent away first.
#[test]
fn guests_that_were_sent_on_are_sent_away_before_a_volume_is_taken_back() {
    for sent_on in [false, true] {
        let mut a = Node::new(1 << 30, owner());
        let epoch = ready_to_relinquish(&mut a);
        let n2 = "n2".parse().unwrap();
        let c = a.vol.relinquish(&n2, Generation(2), epoch).unwrap();
        assert_eq!(a.ended(c), Some(Ok(())));
        if sent_on {
            a.vol.forward(NOW, true).unwrap();
            assert_eq!(a.write(1, 7), Admission::Forward);
        } else {
            assert_eq!(a.write(1, 7), Admission::Held);
        }
        a.vol.send_away(NOW);
        assert_eq!(a.vol.is_replaced(), sent_on);
        assert!(!a.vol.is_forwarding());
        assert_eq!(a.vol.gave_up(), Some((Generation(2), epoch)));
        let c = a.vol.activate(Generation(3), epoch).unwrap();
        assert_eq!(a.ended(c), Some(Ok(())));
        assert!(!a.vol.is_replaced());
        assert_eq!(a.vol.owned(), Some(Generation(3)));
        let issued = a.said(|x| matches!(x, Action::Issue(RequestId(1))));
        assert_eq!(issued, !sent_on, "what waited goes on");
    }
}
