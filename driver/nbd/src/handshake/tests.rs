//! Negotiations, good and bad. Each bad one is what some client or attacker has sent to some
//! server.

use super::wire::*;
use super::*;
use crate::codec::TransmissionFlags;
use proptest::prelude::*;

struct Shelf;

impl Exports for Shelf {
    fn names(&self) -> Vec<String> {
        vec!["vm1".to_owned(), "vm2".to_owned()]
    }

    fn find(&self, name: &str) -> Option<Export> {
        let name = if name.is_empty() { "vm1" } else { name };
        if !self.names().iter().any(|n| n == name) {
            return None;
        }
        let mut export = Export::new(name, 1 << 30);
        export.description = "a disk".to_owned();
        export.checkpoints = vec!["monday".to_owned(), "tuesday".to_owned()];
        Some(export)
    }
}

const FLAGS: [u8; 4] = [0, 0, 0, 3];

fn opt(option: u32, data: &[u8]) -> Vec<u8> {
    let mut out = OPTION_MAGIC.to_be_bytes().to_vec();
    out.extend(option.to_be_bytes());
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
    out
}

fn named(name: &str, tail: &[u8]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend(tail);
    data
}

fn go(name: &str) -> Vec<u8> {
    opt(GO, &named(name, &[0, 1, 0, 3]))
}

fn queries(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut tail = (queries.len() as u32).to_be_bytes().to_vec();
    for q in queries {
        tail.extend(named(q, &[]));
    }
    named(name, &tail)
}

type Reply = (u32, u32, Vec<u8>);

fn replies(mut out: &[u8]) -> Vec<Reply> {
    let word = |b: &[u8]| u32::from_be_bytes(b.try_into().unwrap());
    let mut all = Vec::new();
    while !out.is_empty() {
        assert_eq!(out[..8], REPLY_MAGIC.to_be_bytes());
        let len = word(&out[16..20]) as usize;
        all.push((
            word(&out[8..12]),
            word(&out[12..16]),
            out[20..20 + len].to_vec(),
        ));
        out = &out[20 + len..];
    }
    all
}

/// Feed a whole stream in pieces; returns all output, the last event and the surplus.
fn run(tls: Tls, stream: &[u8], piece: usize) -> (Vec<u8>, Event, Vec<u8>) {
    let mut hs = Handshake::new(tls);
    let mut out = Vec::new();
    let mut event = Event::NeedMore;
    let mut at = 0;
    while at < stream.len() {
        let end = (at + piece).min(stream.len());
        let mut input = &stream[at..end];
        loop {
            event = hs.feed(&mut input, &Shelf, &mut out);
            assert!(
                hs.part.capacity() <= 2 * OPTION_MAX,
                "memory grew by a claim"
            );
            match event {
                Event::Send => {}
                Event::NeedMore => break,
                _ => {
                    let at = end - input.len();
                    return (out, event, stream[at..].to_vec());
                }
            }
        }
        at = end;
    }
    (out, event, Vec::new())
}

/// Replies to the given options from a client that then still gets its export.
fn survives(options: &[Vec<u8>]) -> Vec<Reply> {
    let stream = [&FLAGS[..], &options.concat(), &go("vm1")].concat();
    let (out, event, _) = run(Tls::Absent, &stream, usize::MAX / 2);
    assert!(matches!(event, Event::Done(_)), "{event:?}");
    let mut all = replies(&out);
    // the closing GO has three: size, block sizes, ACK
    all.truncate(all.len() - 3);
    all
}

fn refused(option: Vec<u8>) -> u32 {
    match &survives(&[option])[..] {
        [(_, kind, _)] => *kind,
        other => panic!("{other:?}"),
    }
}

fn broken(stream: &[u8]) -> Breach {
    match run(Tls::Absent, stream, usize::MAX / 2).1 {
        Event::Broken(b) => b,
        other => panic!("{other:?}"),
    }
}

#[test]
fn go_gives_the_export_its_sizes_and_what_was_agreed() {
    let stream = [
        &FLAGS[..],
        &opt(STRUCTURED_REPLY, &[]),
        &opt(
            SET_META_CONTEXT,
            &queries("", &["base:allocation", "qemu:dirty-bitmap:tuesday", "x:y"]),
        ),
        &opt(GO, &named("", &[0, 3, 0, 1, 0, 2, 0, 3])),
        b"surplus",
    ]
    .concat();
    let (out, event, surplus) = run(Tls::Absent, &stream, usize::MAX / 2);
    let Event::Done(agreed) = event else {
        panic!("{event:?}");
    };
    assert_eq!(surplus, b"surplus");
    assert_eq!(
        (agreed.requested.as_str(), agreed.export.name.as_str()),
        ("", "vm1")
    );
    assert!(agreed.structured && agreed.export.flags.has(TransmissionFlags::SEND_DF));
    assert_eq!(
        agreed.contexts,
        [
            MetaContext::Allocation,
            MetaContext::Dirty("tuesday".to_owned())
        ]
    );
    let all = replies(&out);
    let infos: Vec<_> = all
        .iter()
        .filter(|r| r.1 == REP_INFO)
        .map(|r| r.2.clone())
        .collect();
    assert_eq!(
        infos[0][..10],
        [&[0, 0][..], &(1u64 << 30).to_be_bytes()].concat()
    );
    let told = u16::from_be_bytes([infos[0][10], infos[0][11]]);
    assert_eq!(
        told, agreed.export.flags.0,
        "clients go by what the reply says"
    );
    assert_eq!(infos[1], b"\0\x01vm1");
    assert_eq!(infos[2], b"\0\x02a disk");
    assert_eq!(infos[3], [0, 3, 0, 0, 0, 1, 0, 0, 0x10, 0, 2, 0, 0, 0]);
    assert_eq!(all.last().unwrap(), &(GO, REP_ACK, vec![]));
}

#[test]
fn export_name_has_its_zeroes_unless_forgone_and_an_unknown_name_ends_it() {
    for (flags, len) in [([0, 0, 0, 0], 134), ([0, 0, 0, 1], 134), ([0, 0, 0, 3], 10)] {
        let stream = [&flags[..], &opt(EXPORT_NAME, b"vm2")].concat();
        let (out, event, _) = run(Tls::Absent, &stream, usize::MAX / 2);
        assert_eq!(out.len(), len);
        assert!(matches!(event, Event::Done(a) if a.export.name == "vm2" && !a.structured));
    }
    let unknown = [&FLAGS[..], &opt(EXPORT_NAME, b"../etc/passwd")].concat();
    assert_eq!(broken(&unknown), Breach::NoSuchExport);
}

#[test]
fn list_names_every_export() {
    let all = survives(&[opt(LIST, &[])]);
    assert_eq!(all[0], (LIST, REP_SERVER, named("vm1", &[])));
    assert_eq!(all[1], (LIST, REP_SERVER, named("vm2", &[])));
    assert_eq!(all[2], (LIST, REP_ACK, vec![]));
}

#[test]
fn list_meta_context_knows_prefixes_and_set_does_not() {
    let names = |q: &[&str]| -> Vec<String> {
        survives(&[opt(LIST_META_CONTEXT, &queries("vm1", q))])
            .iter()
            .filter(|r| r.1 == REP_META_CONTEXT)
            .map(|r| String::from_utf8(r.2[4..].to_vec()).unwrap())
            .collect()
    };
    let [monday, tuesday] = ["qemu:dirty-bitmap:monday", "qemu:dirty-bitmap:tuesday"];
    assert_eq!(names(&[]), ["base:allocation", monday, tuesday]);
    assert_eq!(names(&["base:"]), ["base:allocation"]);
    assert_eq!(names(&["qemu:"]), [monday, tuesday]);
    assert_eq!(names(&["qemu:dirty-bitmap:"]), [monday, tuesday]);
    assert_eq!(names(&[tuesday, "base:alloc", "other:"]), [tuesday]);
    let set = survives(&[
        opt(STRUCTURED_REPLY, &[]),
        opt(SET_META_CONTEXT, &queries("vm1", &["base:", "qemu:"])),
    ]);
    assert_eq!(set[1..], [(SET_META_CONTEXT, REP_ACK, vec![])]);
}

#[test]
fn contexts_hold_for_the_export_they_were_set_on_only() {
    let stream = [
        &FLAGS[..],
        &opt(STRUCTURED_REPLY, &[]),
        &opt(SET_META_CONTEXT, &queries("vm2", &["base:allocation"])),
        &go("vm1"),
    ]
    .concat();
    let (_, event, _) = run(Tls::Absent, &stream, usize::MAX / 2);
    assert!(matches!(event, Event::Done(a) if a.contexts.is_empty()));
}

/// Without structured replies there is no way to answer a block status; a server that accepted the
/// contexts all the same would answer with chunks that the client cannot read.
#[test]
fn set_meta_context_without_structured_reply_is_invalid() {
    let set = opt(SET_META_CONTEXT, &queries("vm1", &["base:allocation"]));
    assert_eq!(refused(set), ERR_INVALID);
}

#[test]
fn a_failed_set_forgets_the_former_choice() {
    let stream = [
        &FLAGS[..],
        &opt(STRUCTURED_REPLY, &[]),
        &opt(SET_META_CONTEXT, &queries("vm1", &["base:allocation"])),
        &opt(SET_META_CONTEXT, b"\xff\xff\xff\xff"),
        &go("vm1"),
    ]
    .concat();
    let (_, event, _) = run(Tls::Absent, &stream, usize::MAX / 2);
    assert!(matches!(event, Event::Done(a) if a.contexts.is_empty()));
}

#[test]
fn unknown_options_are_answered_and_survived() {
    for option in [0, 4, 11, 12, 0x7fff_ffff, u32::MAX] {
        assert_eq!(
            refused(opt(option, b"whatever")),
            ERR_UNSUP,
            "option {option}"
        );
    }
}

#[test]
fn options_with_data_they_do_not_have_are_invalid() {
    assert_eq!(refused(opt(LIST, b"x")), ERR_INVALID);
    assert_eq!(refused(opt(STRUCTURED_REPLY, b"x")), ERR_INVALID);
    assert_eq!(
        refused(opt(
            LIST_META_CONTEXT,
            &[queries("vm1", &[]), vec![0]].concat()
        )),
        ERR_INVALID
    );
}

/// A name length or a count of 0xffffffff has made servers allocate gigabytes, or wrap around and
/// read past their buffer (CVE-2022-26495, CVE-2022-26496).
#[test]
fn lengths_beyond_the_option_are_invalid_and_allocate_nothing() {
    for option in [INFO, GO, LIST_META_CONTEXT] {
        for data in [
            &b"\xff\xff\xff\xff"[..],
            b"\xff\xff\xff\xfcvm1\0\0",
            b"\0\0\0",
            b"",
            b"\0\0\0\x04vm1",
        ] {
            assert_eq!(refused(opt(option, data)), ERR_INVALID, "{option} {data:?}");
        }
    }
    assert_eq!(
        refused(opt(LIST_META_CONTEXT, &named("vm1", &[0xff; 4]))),
        ERR_INVALID
    );
    assert_eq!(
        refused(opt(INFO, &named("vm1", &[0xff, 0xff, 0, 3]))),
        ERR_INVALID
    );
    assert_eq!(
        refused(opt(INFO, &named("vm1", &[0, 0, 0, 3]))),
        ERR_INVALID
    );
    assert_eq!(refused(opt(INFO, &named("vm1", &[0, 1, 0]))), ERR_INVALID);
}

#[test]
fn names_are_keys_and_checked_as_strings() {
    assert_eq!(refused(opt(INFO, &named("vm1\0", &[0, 0]))), ERR_INVALID);
    assert_eq!(refused(opt(INFO, b"\0\0\0\x02\xc3\x28\0\0")), ERR_INVALID);
    assert_eq!(
        refused(opt(INFO, &named(&"x".repeat(4097), &[0, 0]))),
        ERR_TOO_BIG
    );
    assert_eq!(
        refused(opt(INFO, &named(&"x".repeat(4096), &[0, 0]))),
        ERR_UNKNOWN
    );
    assert_eq!(refused(opt(INFO, &named("../vm1", &[0, 0]))), ERR_UNKNOWN);
}

#[test]
fn an_option_too_long_to_look_at_is_skipped_and_refused() {
    assert_eq!(refused(opt(INFO, &vec![0; OPTION_MAX + 1])), ERR_TOO_BIG);
    let mut claim = opt(99, &[]);
    claim[12..].copy_from_slice(&u32::MAX.to_be_bytes());
    assert_eq!(broken(&[&FLAGS[..], &claim].concat()), Breach::TooManyBytes);
}

#[test]
fn a_flood_of_options_ends_at_the_cap() {
    let flood = opt(LIST, &[]).repeat(OPTIONS_MAX as usize + 1);
    assert_eq!(
        broken(&[&FLAGS[..], &flood].concat()),
        Breach::TooManyOptions
    );
    let fat = opt(99, &vec![0; OPTION_MAX]).repeat(5);
    assert_eq!(broken(&[&FLAGS[..], &fat].concat()), Breach::TooManyBytes);
}

#[test]
fn a_stranger_to_the_protocol_is_shown_out() {
    assert_eq!(
        broken(b"GET / HTTP/1.1\r\n"),
        Breach::ClientFlags(0x4745_5420)
    );
    assert!(matches!(
        broken(&[&FLAGS[..], &[0; 16]].concat()),
        Breach::Magic(0)
    ));
    assert_eq!(
        broken(&[&[0; 4][..], &opt(LIST, &[])].concat()),
        Breach::NotFixed(LIST)
    );
}

#[test]
fn abort_is_acknowledged() {
    let stream = [&FLAGS[..], &opt(ABORT, &[])].concat();
    let (out, event, _) = run(Tls::Absent, &stream, usize::MAX / 2);
    assert_eq!(
        (event, replies(&out)),
        (Event::Aborted, vec![(ABORT, REP_ACK, vec![])])
    );
}

#[test]
fn starttls_without_tls_is_unsupported_and_survived() {
    assert_eq!(refused(opt(STARTTLS, &[])), ERR_UNSUP);
}

/// What was negotiated in the clear may have been negotiated by an attacker in between
/// (CVE-2021-3716): nothing of it counts once the connection is encrypted.
#[test]
fn encryption_forgets_what_was_agreed_in_the_clear() {
    let mut hs = Handshake::new(Tls::Offered);
    let mut out = Vec::new();
    let stream = [
        &FLAGS[..],
        &opt(STRUCTURED_REPLY, &[]),
        &opt(SET_META_CONTEXT, &queries("vm1", &["base:allocation"])),
        &opt(STARTTLS, &[]),
    ]
    .concat();
    let mut input = &stream[..];
    while hs.feed(&mut input, &Shelf, &mut out) == Event::Send {}
    assert_eq!(replies(&out).last().unwrap(), &(STARTTLS, REP_ACK, vec![]));
    hs.secured();
    let Event::Done(agreed) = hs.feed(&mut &go("vm1")[..], &Shelf, &mut out) else {
        panic!("GO after TLS");
    };
    assert!(!agreed.structured && agreed.contexts.is_empty());
}

/// A link is dialled while its owner-to-be has not taken the volume: the answer to GO waits, and costs no
/// round trip when the volume is there.
#[test]
fn go_waits_for_an_export_that_is_expected_and_no_other_option_does() {
    struct Coming(std::cell::Cell<bool>);
    impl Exports for Coming {
        fn names(&self) -> Vec<String> {
            Vec::new()
        }
        fn find(&self, name: &str) -> Option<Export> {
            self.0.get().then(|| Export::new(name, 1 << 20))
        }
        fn arrival(&self, name: &str) -> Option<crate::Arrival> {
            (name == "vm1").then(|| Box::pin(std::future::pending()) as _)
        }
    }
    let exports = Coming(std::cell::Cell::new(false));
    let later = Event::Later("vm1".to_owned());
    let begin = |stream: &[u8]| {
        let mut hs = Handshake::new(Tls::Absent);
        let mut out = Vec::new();
        let event = hs.feed(&mut &[&FLAGS[..], stream].concat()[..], &exports, &mut out);
        (hs, out, event)
    };
    let kind = |out: &[u8]| replies(out).last().unwrap().1;

    let (mut hs, mut out, event) = begin(&go("vm1"));
    assert_eq!((event, out.len()), (later.clone(), 0));
    assert_eq!(hs.feed(&mut &[][..], &exports, &mut out), later);
    exports.0.set(true);
    let Event::Done(agreed) = hs.feed(&mut &[][..], &exports, &mut out) else {
        panic!("GO of an export that has come");
    };
    assert_eq!((agreed.export.size, kind(&out)), (1 << 20, REP_ACK));
    exports.0.set(false);

    let (mut hs, mut out, event) = begin(&go("vm1"));
    assert_eq!(event, later);
    hs.wait_no_longer();
    assert_eq!(hs.feed(&mut &[][..], &exports, &mut out), Event::Send);
    assert_eq!(kind(&out), ERR_UNKNOWN);
    assert_eq!(
        hs.feed(&mut &go("vm1")[..], &exports, &mut out),
        Event::Send
    );
    assert_eq!(kind(&out), ERR_UNKNOWN);

    for other in [go("vm2"), opt(INFO, &named("vm1", &[0, 0]))] {
        let (_, out, event) = begin(&other);
        assert_eq!((event, kind(&out)), (Event::Send, ERR_UNKNOWN));
    }
}

#[test]
fn nothing_is_told_before_tls_where_it_is_required() {
    let stream = [&FLAGS[..], &opt(LIST, &[]), &go("vm1"), &opt(STARTTLS, &[])].concat();
    let (out, event, _) = run(Tls::Required, &stream, usize::MAX / 2);
    assert_eq!(event, Event::StartTls);
    let kinds: Vec<u32> = replies(&out).iter().map(|r| r.1).collect();
    assert_eq!(kinds, [ERR_TLS_REQD, ERR_TLS_REQD, REP_ACK]);
    let named = [&FLAGS[..], &opt(EXPORT_NAME, b"vm1")].concat();
    let (_, event, _) = run(Tls::Required, &named, usize::MAX / 2);
    assert_eq!(event, Event::Broken(Breach::NotEncrypted));
}

proptest! {
    #[test]
    fn a_handshake_means_the_same_however_it_is_cut(
        options in proptest::collection::vec(
            (0u32..13, proptest::collection::vec(any::<u8>(), 0..40), any::<bool>()), 0..20,
        ),
        piece in 1usize..60,
    ) {
        let mut stream = FLAGS.to_vec();
        for (option, data, well_formed) in options {
            let data = if well_formed { queries("vm1", &["base:allocation"]) } else { data };
            stream.extend(opt(option, &data));
        }
        stream.extend(go("vm1"));
        prop_assert_eq!(
            run(Tls::Absent, &stream, piece),
            run(Tls::Absent, &stream, usize::MAX / 2)
        );
    }

    #[test]
    fn garbage_never_panics(
        tail in proptest::collection::vec(any::<u8>(), 0..300),
        option in 0u32..13,
        claim in 0u32..400,
    ) {
        let mut stream = FLAGS.to_vec();
        let mut head = opt(option, &[]);
        head[12..].copy_from_slice(&claim.to_be_bytes());
        stream.extend(head);
        stream.extend(tail);
        run(Tls::Absent, &stream, 7);
    }
}
