//! A volume grows: whatever a power cut leaves of it, the next opening goes on, and what lies beyond the
//! former end is compared with the replicas, and nothing else is.

use super::*;
use block::AREA_BYTES;

/// The last area is not whole.
const BEFORE: u64 = (1 << 30) - 512;
/// More areas than fit a page of intents.
const AFTER: u64 = 200 << 30;
const FIRST_NEW: u64 = BEFORE / AREA_BYTES;

/// What the file holds of a volume with one replica, closed in order; it has room for the new size.
fn closed() -> Vec<u8> {
    let mut a = Node::new(BEFORE, owner());
    ready_to_relinquish(&mut a);
    let c = a.vol.close(ImageMark::default()).unwrap();
    assert_eq!(a.ended(c), Some(Ok(())));
    a.meta.resize(meta_bytes(AFTER) as usize, 0);
    a.meta
}

fn grown(meta: &[u8]) -> Volume {
    Volume::open_grown(config(AFTER), None, meta, BEFORE).unwrap()
}

/// Every area beyond the former end is suspect, and those before it are not.
fn assert_suspect(vol: &Volume, what: &str) {
    let areas = AFTER.div_ceil(AREA_BYTES);
    let intents = vol.intents().unwrap();
    let new = (FIRST_NEW..areas).all(|a| intents.contains(block::Area(a)));
    assert!(
        new,
        "{what}: an area beyond the former end is taken for clean"
    );
    let old = intents.iter().filter(|a| a.0 < FIRST_NEW).count();
    assert_eq!(old, 0, "{what}: areas that were clean are compared");
}

/// An opening that was broken off.
struct Opening {
    durable: Vec<u8>,
    /// Pages that may or may not be on the disk, by slot.
    unsynced: Vec<(u32, Vec<u8>)>,
    opened: bool,
}

/// Drive the opening until `steps` syncs have ended.
fn opened_until(meta: &[u8], steps: usize) -> Opening {
    let (mut durable, mut unsynced) = (meta.to_vec(), Vec::new());
    let (mut vol, mut opened) = (grown(meta), false);
    let mut left = steps;
    while let Some(action) = vol.poll() {
        match action {
            Action::WriteMeta { slot, bytes } => unsynced.push((slot, bytes.to_vec())),
            Action::SyncMeta if left == 0 => break,
            Action::SyncMeta => {
                left -= 1;
                for (slot, bytes) in unsynced.drain(..) {
                    durable[slot as usize * 4096..][..4096].copy_from_slice(&bytes);
                }
                vol.meta_synced(NOW, Ok(()));
            }
            Action::Opened => opened = true,
            _ => {}
        }
    }
    Opening {
        durable,
        unsynced,
        opened,
    }
}

#[test]
fn a_growth_goes_on_after_a_power_cut_anywhere() {
    let before = closed();
    for steps in 0..8 {
        let Opening {
            durable,
            unsynced,
            opened,
        } = opened_until(&before, steps);
        assert!(unsynced.len() <= 4, "{} pages", unsynced.len());
        for kept in 0..1 << unsynced.len() {
            let mut meta = durable.clone();
            for (i, (slot, bytes)) in unsynced.iter().enumerate() {
                if kept >> i & 1 != 0 {
                    meta[*slot as usize * 4096..][..4096].copy_from_slice(bytes);
                }
            }
            let what = format!("after {steps} syncs, kept {kept:b}");
            assert_suspect(&grown(&meta), &what);
            if opened {
                // The node has forgotten by now that it grew.
                assert_suspect(&Volume::open(config(AFTER), None, &meta).unwrap(), &what);
            }
        }
    }
    assert!(opened_until(&before, 8).opened, "it never opens");
}

#[test]
fn a_replica_is_sent_what_lies_beyond_the_former_end() {
    let mut a = Node::new(BEFORE, owner());
    a.meta = closed();
    a.vol = grown(&a.meta);
    a.run();
    let snapshot = a.vol.rotate(&replica("n2")).unwrap();
    let block = |byte: u64| Block(byte / 4096);
    assert!(snapshot.is_pending(block(AFTER - 1)));
    assert!(snapshot.is_pending(block(BEFORE)));
    assert!(!snapshot.is_pending(block(AREA_BYTES)));
}

#[test]
fn an_image_of_any_other_size_is_refused() {
    let meta = closed();
    for (size, before) in [
        (AFTER, BEFORE - 512),
        (BEFORE - 512, BEFORE),
        (BEFORE / 2, AFTER),
    ] {
        let e = Volume::open_grown(config(size), None, &meta, before).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Corrupt, "{before} to {size}");
    }
    assert!(Volume::open(config(AFTER), None, &meta).is_err());
}
