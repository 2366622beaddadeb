//! The engine with real sockets and files: many clients at once, clients that vanish in the middle
//! of a request, a mirror, and in `forwarding` volumes that move between engines.

#![allow(clippy::unwrap_used)] // a test

mod forwarding;
mod setup;

use block::{Epoch, Generation};
use nbd::client::Uri;
use nbd::codec::{Command, CommandFlags, Cookie, RequestHeader};
use node::engine::Engine;
use replica::MirrorOp;
use setup::*;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;
use storage::CacheMode;
use volume::{CursorName, Role, Start};

/// Send a storm of requests without reading a reply, end in the middle of a payload, and vanish.
fn vanish(path: &Path, seed: u64) {
    let uri: Uri = format!("nbd+unix:///v?socket={}", path.display())
        .parse()
        .unwrap();
    let (_, socket) = nbd::client::dial(&uri, &[], PATIENCE).unwrap();
    let mut stream = UnixStream::from(socket);
    let mut random = Random(seed);
    for cookie in 0..100 {
        let (command, len) = match random.below(3) {
            0 => (Command::Write, 40_000),
            1 => (Command::Flush, 0),
            _ => (Command::Read, 200_000),
        };
        let header = RequestHeader {
            flags: CommandFlags::NONE,
            command,
            cookie: Cookie(cookie),
            offset: if len == 0 {
                0
            } else {
                SIZE / 2 + random.below(SIZE / 4)
            },
            len,
        };
        let payload = if command == Command::Write {
            len as usize
        } else {
            0
        };
        stream
            .set_write_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        let sent = stream
            .write_all(&header.encode())
            .and_then(|()| stream.write_all(&vec![7; payload.min(20_000 + cookie as usize)]));
        if sent.is_err() || payload > 0 && random.below(3) == 0 {
            return;
        }
        if payload > 0
            && stream
                .write_all(&vec![7; payload - payload.min(20_000 + cookie as usize)])
                .is_err()
        {
            return;
        }
    }
}

#[test]
fn clients_that_vanish_in_a_storm_disturb_nobody() {
    for cache in [CacheMode::Direct, CacheMode::Writeback] {
        let dir = directory();
        let runtime = runtime();
        let engine = Engine::start(1, false).unwrap();
        let image = open(&dir.path().join("image"), cache, true);
        let socket = dir.path().join("s");
        let volume = runtime.block_on(ephemeral(&engine, image));
        let (task, uri) = runtime.block_on(async { listen(&socket, volume.clone()) });
        std::thread::scope(|s| {
            for i in 0..4 {
                let uri = &uri;
                s.spawn(move || work(uri, i * SIZE / 8, SIZE / 8, 60));
            }
            for i in 0..8 {
                let socket = &socket;
                s.spawn(move || vanish(socket, 77 + i));
            }
        });
        task.abort();
        runtime.block_on(volume.remove()).unwrap();
        engine.stop().unwrap();
    }
}

/// A client may ask for more than its window holds before it takes a reply: what waits in the receive
/// buffer goes on when replies have left, though nothing else happens that would wake the shard. Where
/// everything is cached, no request ever leaves the shard's own hands.
#[test]
fn a_client_deeper_than_its_window_gets_every_reply() {
    const READS: u64 = 1000;
    const BYTES: u32 = 4096;
    for cache in [CacheMode::Direct, CacheMode::Writeback] {
        let dir = directory();
        let runtime = runtime();
        let engine = Engine::start(1, false).unwrap();
        let image = open(&dir.path().join("image"), cache, true);
        let volume = runtime.block_on(ephemeral(&engine, image));
        let (task, uri) = runtime.block_on(async { listen(&dir.path().join("s"), volume.clone()) });
        let (_, socket) = nbd::client::dial(&uri, &[], PATIENCE).unwrap();
        let mut stream = UnixStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let header = |cookie, command, len| RequestHeader {
            flags: CommandFlags::NONE,
            command,
            cookie: Cookie(cookie),
            offset: 0,
            len,
        };
        let mut requests: Vec<u8> = (0..READS)
            .flat_map(|cookie| header(cookie, Command::Read, BYTES).encode())
            .collect();
        requests.extend(header(READS, Command::Disconnect, 0).encode());
        stream.write_all(&requests).unwrap();
        let mut replies = Vec::new();
        stream.read_to_end(&mut replies).unwrap();
        let each = replies.len() as u64 / READS;
        assert_eq!(replies.len() as u64 % READS, 0, "a reply is missing or cut");
        assert!(
            each > u64::from(BYTES) && each < u64::from(BYTES) + 64,
            "{each} bytes a reply"
        );
        task.abort();
        runtime.block_on(volume.remove()).unwrap();
        engine.stop().unwrap();
    }
}

/// A read that comes short goes on where it stopped, and may have to wait for its turn again. When the disk had
/// nothing else to do, and the shard looked only after volumes of which a request had ended, it waited for ever.
/// Here the file was made shorter behind the server's back, and every read goes across its end.
#[test]
fn reads_that_come_short_and_wait_for_their_turn_again_are_answered() {
    const READS: u64 = 8000;
    let dir = directory();
    let runtime = runtime();
    let engine = Engine::start(1, false).unwrap();
    let path = dir.path().join("image");
    let image = open(&path, CacheMode::Direct, true);
    let volume = runtime.block_on(ephemeral(&engine, image));
    let (task, uri) = runtime.block_on(async { listen(&dir.path().join("s"), volume.clone()) });
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(SIZE / 2).unwrap();
    let (_, socket) = nbd::client::dial(&uri, &[], PATIENCE).unwrap();
    let mut stream = UnixStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let header = |cookie, command| RequestHeader {
        flags: CommandFlags::NONE,
        command,
        cookie: Cookie(cookie),
        offset: SIZE / 2 - 4096,
        len: 8192,
    };
    let mut requests = stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        for cookie in 0..READS {
            let read = header(cookie, Command::Read).encode();
            requests.write_all(&read).unwrap();
        }
        let end = header(READS, Command::Disconnect).encode();
        requests.write_all(&end).unwrap();
    });
    let mut replies = Vec::new();
    stream.read_to_end(&mut replies).unwrap();
    sender.join().unwrap();
    let (each, rest) = (replies.len() as u64 / READS, replies.len() as u64 % READS);
    assert_eq!(rest, 0, "an answer is missing or cut");
    assert!((16..4096).contains(&each), "{each} bytes are no refusal");
    task.abort();
    runtime.block_on(volume.remove()).unwrap();
    engine.stop().unwrap();
}

/// Two regions whose border is inside a sector: their writers share units that O_DIRECT writes
/// whole. Neither may undo the other's bytes.
#[test]
fn neighbours_inside_one_sector_lose_nothing() {
    let dir = directory();
    let runtime = runtime();
    let engine = Engine::start(1, false).unwrap();
    let image = open(&dir.path().join("image"), CacheMode::Direct, true);
    let volume = runtime.block_on(ephemeral(&engine, image));
    let (task, uri) = runtime.block_on(async { listen(&dir.path().join("s"), volume.clone()) });
    std::thread::scope(|s| {
        for i in 0..8 {
            let uri = &uri;
            s.spawn(move || work(uri, 100 + i * 300, 300, 200));
        }
    });
    task.abort();
    runtime.block_on(volume.remove()).unwrap();
    engine.stop().unwrap();
}

/// While a replica mirrors, every write, zeroing and flush goes to it in the gate's order, and what
/// it was sent, applied in that order, is the image. When the mirror's mover dies, the guest's
/// requests that waited for it are answered all the same.
#[test]
fn a_mirror_gets_what_the_image_gets_and_its_death_holds_nobody() {
    let dir = directory();
    let runtime = runtime();
    let engine = Engine::start(1, false).unwrap();
    let owner = Role::Owner {
        generation: Generation(1),
        since: Epoch(0),
    };
    let volume = runtime.block_on(with_meta(&engine, dir.path(), owner));
    let replica = CursorName::Replica("n2".parse().unwrap());
    let mirror_on = async || volume.mirror_on(replica.clone()).await.unwrap();
    let (snapshot, mut mirror) = runtime.block_on(async {
        volume.opened().await.unwrap();
        let name = replica.clone();
        let added = volume.control(move |v, _| v.add_cursor(name, Start::Now));
        added.await.unwrap();
        let name = replica.clone();
        volume.control(move |v, _| v.seeded(&name)).await.unwrap();
        mirror_on().await
    });
    let receipts = mirror.receipts();
    let first = snapshot.epoch();
    let mover = runtime.spawn(async move {
        let mut copy = vec![0; SIZE as usize];
        let mut flushes = 0;
        while let Some(item) = mirror.next().await {
            assert_eq!(item.epoch, first.next());
            match item.op {
                MirrorOp::Write(span, content) => {
                    copy[span.offset as usize..span.end() as usize].copy_from_slice(&content);
                }
                MirrorOp::Zero(span) => copy[span.offset as usize..span.end() as usize].fill(0),
                MirrorOp::Flush => flushes += 1,
            }
            receipts.mirrored(item.id, Ok(()));
        }
        assert!(flushes > 0, "no flush came");
        copy
    });
    let (task, uri) = runtime.block_on(async { listen(&dir.path().join("s"), volume.clone()) });
    let clients = || -> Vec<_> {
        let spawn = |i| {
            let uri = uri.clone();
            std::thread::spawn(move || work(&uri, i * SIZE / 8, SIZE / 8, 60))
        };
        (0..4).map(spawn).collect()
    };
    for client in clients() {
        client.join().unwrap();
    }
    let off = || {
        runtime
            .block_on(volume.call(|v, now| v.mirror_off(now)))
            .unwrap()
    };
    off();
    let copy = runtime.block_on(mover).unwrap();
    let image = std::fs::read(dir.path().join("old")).unwrap();
    assert!(image == copy, "the mirror differs from the image");

    let name = replica.clone();
    let abandon = volume.call(move |v, _| v.abandon(&name, first));
    runtime.block_on(abandon).unwrap();
    let (_, deaf) = runtime.block_on(mirror_on());
    let stuck = clients();
    std::thread::sleep(Duration::from_millis(100));
    assert!(
        stuck.iter().all(|c| !c.is_finished()),
        "a write did not wait for its mirror"
    );
    drop(deaf);
    off();
    for client in stuck {
        client.join().unwrap();
    }
    task.abort();
    runtime.block_on(volume.remove()).unwrap();
    engine.stop().unwrap();
}
