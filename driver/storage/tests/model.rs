//! Random requests through a shard's ring, compared byte by byte with a model: unaligned spans,
//! both cache modes, sizes that end inside a sector, zeroing and trimming.

#![allow(clippy::unwrap_used)] // a test

use block::{AlignedBuf, Span};
use proptest::prelude::*;
use ring::{Config, Done, Handler, Next, Ring, Shard};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, Sender, channel};
use storage::{CacheMode, Image, ImageFile, Io, OpenOptions, Progress, Work};

type Answer = (Result<(), i32>, Vec<u8>);

enum Ask {
    Do(Work, Span, Vec<u8>),
    /// One of several reads at a time, each of a token above [`SYNC`].
    ReadAt(u64, Span),
    /// A read that other requests wait beside.
    ReadInCompany(Span),
    Sync,
    Stop,
}

struct Driver {
    image: Image,
    /// Under way, by token.
    ios: BTreeMap<u64, Io>,
    answers: Sender<Answer>,
    stop: bool,
}

const IO: u64 = 1;
const SYNC: u64 = 2;

impl Driver {
    fn progress(&mut self, token: u64, mut io: Io, progress: Progress) {
        match progress {
            Progress::More => {
                self.ios.insert(token, io);
            }
            Progress::Ended(outcome) => {
                let place = io.payload();
                let buf = io.take_buffer();
                let bytes = match io_is_read(&buf, outcome) {
                    Some(buf) => buf[place].to_vec(),
                    None => Vec::new(),
                };
                self.answers.send((outcome, bytes)).unwrap();
            }
        }
    }
}

fn io_is_read(buf: &Option<AlignedBuf>, outcome: Result<(), i32>) -> Option<&AlignedBuf> {
    outcome.ok().and(buf.as_ref())
}

impl Handler for Driver {
    type Message = Ask;

    fn completed(&mut self, ring: &mut Ring, done: Done) {
        if done.token == SYNC {
            self.answers
                .send((done.result.map(drop), Vec::new()))
                .unwrap();
            return;
        }
        let token = done.token;
        let mut io = self.ios.remove(&token).unwrap();
        let progress = self.image.completed(ring, &mut io, done);
        self.progress(token, io, progress);
    }

    fn message(&mut self, ring: &mut Ring, message: Ask) {
        match message {
            Ask::Do(work, span, bytes) => {
                let mut io = self.image.prepare(work, span);
                if matches!(work, Work::Read | Work::Write) {
                    let mut buf = AlignedBuf::zeroed(io.buffer_bytes());
                    buf.fill(0xee);
                    if work == Work::Write {
                        buf[io.payload()].copy_from_slice(&bytes);
                    }
                    io.set_buffer(buf);
                }
                let progress = self.image.start(ring, &mut io, IO);
                self.progress(IO, io, progress);
            }
            Ask::ReadAt(token, span) => {
                let mut io = self.image.prepare(Work::Read, span);
                io.set_buffer(AlignedBuf::zeroed(io.buffer_bytes()));
                let progress = self.image.start(ring, &mut io, token);
                self.progress(token, io, progress);
            }
            Ask::ReadInCompany(span) => {
                let mut io = self.image.prepare(Work::Read, span);
                io.set_buffer(AlignedBuf::zeroed(io.buffer_bytes()));
                io.set_company();
                let progress = self.image.start(ring, &mut io, IO);
                self.progress(IO, io, progress);
            }
            Ask::Sync => self.image.sync(ring, SYNC),
            Ask::Stop => self.stop = true,
        }
    }

    fn turn(&mut self, ring: &mut Ring) -> Next {
        self.image.take_turns(ring);
        ring.await_together(self.image.ending_together());
        if self.stop { Next::Stop } else { Next::Go }
    }

    fn deadline(&self) -> Option<block::Nanos> {
        None
    }
}

struct Rig {
    shard: Shard<Ask>,
    answers: Receiver<Answer>,
    path: std::path::PathBuf,
    _dir: tempfile::TempDir,
}

impl Rig {
    fn new(size: u64, cache: CacheMode) -> Rig {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = dir.path().join("image");
        let options = OpenOptions {
            cache,
            create: Some(size),
            ..OpenOptions::default()
        };
        let file = ImageFile::open(&path, &options).unwrap();
        let (sender, answers) = channel();
        let config = Config {
            name: "model".into(),
            cpu: None,
        };
        let shard = Shard::spawn(config, move |ring, _| {
            Ok(Driver {
                image: Image::attach(file, ring),
                ios: BTreeMap::new(),
                answers: sender,
                stop: false,
            })
        })
        .unwrap();
        Rig {
            shard,
            answers,
            path,
            _dir: dir,
        }
    }

    fn ask(&self, ask: Ask) -> Answer {
        self.shard.mailbox().send(ask).map_err(|_| ()).unwrap();
        let patience = std::time::Duration::from_secs(30);
        self.answers.recv_timeout(patience).unwrap()
    }

    fn stop(self) -> Vec<u8> {
        self.shard
            .mailbox()
            .send(Ask::Stop)
            .map_err(|_| ())
            .unwrap();
        self.shard.join().unwrap();
        std::fs::read(&self.path).unwrap()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Read(u64, u64),
    Write(u64, u64, u8),
    Zero(u64, u64, bool),
    Trim(u64, u64),
    Sync,
}

fn step(size: u64) -> impl Strategy<Value = Step> {
    let span = (0..size).prop_flat_map(move |at| {
        let most = (size - at).min(40_000);
        (Just(at), prop_oneof![1..=most.min(600), 1..=most])
    });
    let snapped = span.prop_map(move |(at, len)| {
        // Half of all spans begin or end on a sector.
        let at = if len % 2 == 0 { at & !511 } else { at };
        let len = if len % 4 == 0 {
            len.next_multiple_of(512).min(size - at)
        } else {
            len
        };
        (at, len)
    });
    (snapped, 0..9u8, any::<u8>()).prop_map(|((at, len), pick, byte)| match pick {
        0..3 => Step::Read(at, len),
        3..6 => Step::Write(at, len, byte),
        6 => Step::Zero(at, len, byte % 2 == 0),
        7 => Step::Trim(at, len),
        _ => Step::Sync,
    })
}

fn run(size: u64, cache: CacheMode, steps: &[Step]) {
    let rig = Rig::new(size, cache);
    let mut model = vec![0u8; size as usize];
    for step in steps {
        let place = |at: u64, len: u64| at as usize..(at + len) as usize;
        match *step {
            Step::Read(at, len) => {
                let (outcome, bytes) = rig.ask(Ask::Do(Work::Read, Span::new(at, len), vec![]));
                assert_eq!(outcome, Ok(()), "{step:?}");
                assert!(bytes == model[place(at, len)], "{step:?} differs");
            }
            Step::Write(at, len, byte) => {
                let bytes: Vec<u8> = (0..len).map(|i| byte.wrapping_add(i as u8)).collect();
                model[place(at, len)].copy_from_slice(&bytes);
                let (outcome, _) = rig.ask(Ask::Do(Work::Write, Span::new(at, len), bytes));
                assert_eq!(outcome, Ok(()), "{step:?}");
            }
            Step::Zero(at, len, no_hole) => {
                model[place(at, len)].fill(0);
                let work = Work::Zero {
                    no_hole,
                    fast: false,
                };
                assert_eq!(rig.ask(Ask::Do(work, Span::new(at, len), vec![])).0, Ok(()));
            }
            Step::Trim(at, len) => {
                model[place(at, len)].fill(0);
                assert_eq!(
                    rig.ask(Ask::Do(Work::Trim, Span::new(at, len), vec![])).0,
                    Ok(())
                );
            }
            Step::Sync => assert_eq!(rig.ask(Ask::Sync).0, Ok(())),
        }
    }
    let (outcome, bytes) = rig.ask(Ask::Do(Work::Read, Span::new(0, size), vec![]));
    assert_eq!(outcome, Ok(()));
    assert!(bytes == model, "the whole image as read differs");
    let file = rig.stop();
    assert!(file == model, "the file differs, or its size has changed");
}

/// Sizes: whole pages; whole sectors; ending inside a sector.
const SIZES: [u64; 3] = [256 << 10, (256 << 10) + 512, (64 << 10) + 777];

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn an_image_holds_what_was_written(
        pick in 0..3usize,
        direct: bool,
        steps in (0..3usize).prop_flat_map(|_| proptest::collection::vec(step(64 << 10), 1..60)),
    ) {
        let cache = if direct { CacheMode::Direct } else { CacheMode::Writeback };
        run(SIZES[pick], cache, &steps);
    }

    #[test]
    fn the_tail_of_an_odd_file_holds_what_was_written(
        direct: bool,
        steps in proptest::collection::vec(step(5000), 1..40),
    ) {
        let cache = if direct { CacheMode::Direct } else { CacheMode::Writeback };
        run(5000, cache, &steps);
    }
}

/// Somebody made the file shorter while it was served. A read past its new end must be an error:
/// zeroes would be a guess.
#[test]
fn a_file_that_shrank_gives_an_error_and_not_zeroes() {
    for cache in [CacheMode::Direct, CacheMode::Writeback] {
        let rig = Rig::new(64 << 10, cache);
        let file = std::fs::OpenOptions::new()
            .write(true)
            .open(&rig.path)
            .unwrap();
        file.set_len(8192).unwrap();
        let read = |at, len| rig.ask(Ask::Do(Work::Read, Span::new(at, len), vec![])).0;
        assert_eq!(read(0, 8192), Ok(()));
        assert_eq!(read(4096, 8192), Err(libc::EIO));
        assert_eq!(read(32 << 10, 4096), Err(libc::EIO));
        rig.stop();
    }
}

/// A cached read is copied by the shard, as far as the page cache has it. Where the cache ends inside
/// the request, the rest must come from the disk and land behind what was copied.
#[test]
fn a_read_that_is_cached_in_part_is_whole() {
    const PIECE: u64 = 64 << 10;
    let rig = Rig::new(4 * PIECE, CacheMode::Writeback);
    let bytes: Vec<u8> = (0..4 * PIECE).map(|i| (i / 509) as u8).collect();
    let whole = Span::new(0, 4 * PIECE);
    assert_eq!(
        rig.ask(Ask::Do(Work::Write, whole, bytes.clone())).0,
        Ok(())
    );
    assert_eq!(rig.ask(Ask::Sync).0, Ok(()));
    let file = std::fs::File::open(&rig.path).unwrap();
    for (from, len) in [
        (0, 4 * PIECE),
        (2 * PIECE, 2 * PIECE),
        (0, PIECE),
        (PIECE, PIECE),
    ] {
        nix::fcntl::posix_fadvise(
            &file,
            from as i64,
            len as i64,
            nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED,
        )
        .unwrap();
        let (outcome, read) = rig.ask(Ask::Do(Work::Read, whole, vec![]));
        assert_eq!(outcome, Ok(()));
        assert!(read == bytes, "without {len} bytes at {from} in the cache");
    }
    rig.stop();
}

/// Workers copy such reads; a place among them that were given back twice would overflow here.
#[test]
fn long_reads_in_company_are_whole_and_notice_a_file_that_became_shorter() {
    const MIB: usize = 1 << 20;
    for cache in [CacheMode::Writeback, CacheMode::Direct] {
        let rig = Rig::new(3 * MIB as u64, cache);
        let bytes: Vec<u8> = (0..3 * MIB).map(|i| (i / 512 + i) as u8).collect();
        std::fs::write(&rig.path, &bytes).unwrap();
        let read =
            |at: usize, len: usize| rig.ask(Ask::ReadInCompany(Span::new(at as u64, len as u64)));
        for turn in 0..4 {
            let (outcome, found) = read(513 * turn, 2 * MIB + 7);
            assert_eq!(outcome, Ok(()), "{cache:?} turn {turn}");
            assert!(
                found == bytes[513 * turn..][..2 * MIB + 7],
                "{cache:?} turn {turn} differs"
            );
        }
        let file = std::fs::OpenOptions::new()
            .write(true)
            .open(&rig.path)
            .unwrap();
        file.set_len(MIB as u64).unwrap();
        for _ in 0..4 {
            assert_eq!(read(MIB / 2, MIB).0, Err(libc::EIO), "{cache:?}");
        }
        let (outcome, found) = read(0, MIB);
        assert_eq!(outcome, Ok(()), "{cache:?}");
        assert!(found == bytes[..MIB], "{cache:?} differs after errors");
        rig.stop();
    }
}

/// Whether a disk gets everything at once or in halves is tried in turns while guests read: no read may be
/// lost or given another's bytes by that, and each must end.
#[test]
fn reads_that_waited_for_their_turn_end_with_their_own_bytes() {
    const SECTORS: u64 = 4096;
    for (depth, bytes) in [(4, 8192), (16, 4096), (33, 512)] {
        let rig = Rig::new(SECTORS * 512, CacheMode::Direct);
        let content: Vec<u8> = (0..SECTORS)
            .flat_map(|s| s.to_le_bytes().repeat(64))
            .collect();
        std::fs::write(&rig.path, content).unwrap();
        let mut asked = BTreeSet::new();
        let mut reads = (0..3000).map(|i| i * 97 % (SECTORS - 16)).zip(SYNC + 1..);
        let mut ask = |asked: &mut BTreeSet<u64>| {
            if let Some((sector, token)) = reads.find(|(s, _)| !asked.contains(s)) {
                asked.insert(sector);
                let span = Span::new(sector * 512, bytes);
                let sent = rig.shard.mailbox().send(Ask::ReadAt(token, span));
                sent.map_err(|_| ()).unwrap();
            }
        };
        (0..depth).for_each(|_| ask(&mut asked));
        while !asked.is_empty() {
            let patience = std::time::Duration::from_secs(20);
            let (outcome, found) = rig.answers.recv_timeout(patience).unwrap();
            assert_eq!(outcome, Ok(()));
            let first = u64::from_le_bytes(found[..8].try_into().unwrap());
            for (sector, bytes) in (first..).zip(found.chunks(512)) {
                assert_eq!(bytes, sector.to_le_bytes().repeat(64), "depth {depth}");
            }
            assert!(asked.remove(&first), "sector {first} was answered twice");
            ask(&mut asked);
        }
        rig.stop();
    }
}
