//! A source that does not keep the rules: what it says is refused, and the copy stays what it was.
#![allow(clippy::unwrap_used)]

mod world;

use block::{Epoch, Error, ErrorKind, Generation, Span, Transport};
use futures_util::future::join;
use replica::{State, greet};
use wire::{Encoder, Hello, Message, OLDEST_VERSION, SessionId, VERSION};
use world::disk::{MemDisk, forever};
use world::link::{Fault, pair};
use world::node::{CLEAN, MIB, Node, assert_same, connection, fill, sender};
use world::volume::MemVolume;
use world::{Dice, VOLUME, run};

const SIZE: u64 = MIB;

/// A connection on which frames of an epoch are said after the greeting: why the receiver ended it.
async fn say(node: &Node, dice: &Dice, epoch: u64, messages: &[Message<'_>]) -> Error {
    let (source, end) = pair(dice, Fault::None, Fault::None);
    let receiver = node.open().await.unwrap();
    let mut encoder = Encoder::new(SessionId(dice.roll(u64::MAX)));
    let hello = Message::Hello(Hello {
        oldest: OLDEST_VERSION,
        newest: VERSION,
        volume: VOLUME,
        size: SIZE,
    });
    let mut said = Vec::new();
    encoder.encode(Generation(1), Epoch(0), &hello, &mut said);
    for message in messages {
        encoder.encode(Generation(1), Epoch(epoch), message, &mut said);
    }
    let speak = async {
        source.send(said).await.0.unwrap();
        // Long enough for the receiver to have its say.
        world::pause(500).await;
        drop(source);
    };
    let serve = async { receiver.serve(greet(end).await.unwrap()).await };
    join(speak, serve).await.1
}

/// A copy of a volume that a source has brought to a point in time.
async fn copied(dice: &Dice) -> Node {
    let volume = MemVolume::new(MemDisk::new(SIZE, dice, &forever()));
    fill(&volume, dice);
    let (sender, node) = (sender(&volume), Node::new(SIZE, dice));
    let receiver = node.open().await.unwrap();
    let work = connection(dice, &sender, &receiver, CLEAN, async |s| {
        s.catch_up().await.map(drop)
    });
    work.await.0.unwrap();
    assert_eq!(receiver.record().state, State::Consistent);
    node
}

/// An increment on top of one that the copy never got, or one that it has already, would leave it a mixture
/// of points in time that calls itself one.
#[test]
fn an_epoch_that_does_not_follow_the_copys_is_refused() {
    run(async {
        let dice = Dice::new(8);
        let node = copied(&dice).await;
        let before = node.open().await.unwrap().record();
        let content = node.image.content();
        let has = before.epoch.0;
        let begin = |base| [Message::EpochBegin { base }];
        for (base, epoch) in [(has + 1, has + 2), (has, has), (has - 1, has), (0, has - 1)] {
            let e = say(&node, &dice, epoch, &begin(base)).await;
            assert_eq!(e.kind(), ErrorKind::Invalid, "{base} to {epoch}: {e}");
            assert!(e.to_string().contains("does not follow this copy"), "{e}");
        }
        // One that follows is taken, and its end awaited.
        let e = say(&node, &dice, has + 1, &begin(has)).await;
        assert_eq!(e.kind(), ErrorKind::Disconnected, "{e}");
        assert_eq!(node.open().await.unwrap().record(), before);
        assert_same("the copy", &node.image.content(), &content);
    });
}

/// A source that counts frames which it never sent, as one that lost some of them would. What is committed
/// without them is no point in time.
#[test]
fn an_epoch_whose_frames_did_not_all_arrive_is_refused() {
    run(async {
        let dice = Dice::new(9);
        let node = copied(&dice).await;
        let before = node.open().await.unwrap().record();
        let has = before.epoch.0;
        let mut none = [0; 16];
        none.copy_from_slice(&blake3::hash(b"").as_bytes()[..16]);
        let epoch = |frames, bytes, digest| {
            [
                Message::EpochBegin { base: has },
                Message::EpochEnd {
                    frames,
                    bytes,
                    digest,
                },
            ]
        };
        for (frames, bytes, digest) in [(1, 0, none), (0, 4096, none), (0, 0, [7; 16])] {
            let e = say(&node, &dice, has + 1, &epoch(frames, bytes, digest)).await;
            assert_eq!(e.kind(), ErrorKind::Corrupt, "{frames} with {bytes}: {e}");
            assert_eq!(node.open().await.unwrap().record(), before);
        }
        let e = say(&node, &dice, has + 1, &epoch(0, 0, none)).await;
        assert_eq!(e.kind(), ErrorKind::Disconnected, "{e}");
        let after = node.open().await.unwrap().record();
        assert_eq!(
            (after.epoch, after.state),
            (Epoch(has + 1), State::Consistent)
        );
    });
}

/// A node that owns the volume tells a former owner so when it greets it. One that goes on all the same would
/// have it seed over what the guest writes here.
#[test]
fn a_node_that_owns_the_volume_takes_nothing_whatever_a_source_says() {
    run(async {
        let dice = Dice::new(10);
        let node = copied(&dice).await;
        let receiver = node.open().await.unwrap();
        let epoch = receiver.take_over(Generation(2)).await.unwrap();
        let (record, content) = (receiver.record(), node.image.content());
        drop(receiver);
        let zero = Message::MirrorZero {
            id: 1,
            span: Span::new(0, SIZE),
        };
        let all = [
            vec![Message::SeedBegin { from: 0 }],
            vec![
                Message::SeedBegin { from: 0 },
                Message::SeedWatermark { offset: SIZE },
            ],
            vec![Message::EpochBegin { base: epoch.0 }],
            vec![zero],
        ];
        for messages in &all {
            let e = say(&node, &dice, epoch.0 + 1, messages).await;
            assert_eq!(e.kind(), ErrorKind::Fenced, "{messages:?}: {e}");
            assert_eq!(node.open().await.unwrap().record(), record, "{messages:?}");
            assert_same("the volume", &node.image.content(), &content);
        }
    });
}
