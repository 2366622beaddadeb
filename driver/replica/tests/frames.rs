//! A source that does not keep the rules: what it says is refused, and the copy stays what it was.
#![allow(clippy::unwrap_used)]

mod world;

use block::{Epoch, Error, ErrorKind, Generation, Transport};
use futures_util::future::join;
use replica::{State, greet};
use wire::{Encoder, Hello, Message, OLDEST_VERSION, SessionId, VERSION};
use world::disk::{MemDisk, forever};
use world::link::{Fault, pair};
use world::node::{CLEAN, MIB, Node, assert_same, connection, fill, sender};
use world::volume::MemVolume;
use world::{Dice, VOLUME, run};

const SIZE: u64 = MIB;

/// A connection on which one frame is said after the greeting: why the receiver ended it.
async fn say(node: &Node, dice: &Dice, epoch: Epoch, message: &Message<'_>) -> Error {
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
    for (epoch, message) in [(Epoch(0), &hello), (epoch, message)] {
        encoder.encode(Generation(1), epoch, message, &mut said);
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

/// An increment on top of one that the copy never got, or one that it has already, would leave it a mixture
/// of points in time that calls itself one.
#[test]
fn an_epoch_that_does_not_follow_the_copys_is_refused() {
    run(async {
        let dice = Dice::new(8);
        let volume = MemVolume::new(MemDisk::new(SIZE, &dice, &forever()));
        fill(&volume, &dice);
        let (sender, node) = (sender(&volume), Node::new(SIZE, &dice));
        let receiver = node.open().await.unwrap();
        let work = connection(&dice, &sender, &receiver, CLEAN, async |s| {
            s.catch_up().await.map(drop)
        });
        work.await.0.unwrap();
        let before = receiver.record();
        assert_eq!(before.state, State::Consistent);
        let content = node.image.content();
        let has = before.epoch.0;
        for (base, epoch) in [(has + 1, has + 2), (has, has), (has - 1, has), (0, has - 1)] {
            let e = say(&node, &dice, Epoch(epoch), &Message::EpochBegin { base }).await;
            assert_eq!(e.kind(), ErrorKind::Invalid, "{base} to {epoch}: {e}");
            assert!(e.to_string().contains("does not follow this copy"), "{e}");
        }
        // One that follows is taken, and its end awaited.
        let next = Epoch(has + 1);
        let e = say(&node, &dice, next, &Message::EpochBegin { base: has }).await;
        assert_eq!(e.kind(), ErrorKind::Disconnected, "{e}");
        assert_eq!(node.open().await.unwrap().record(), before);
        assert_same("the copy", &node.image.content(), &content);
    });
}
