//! The dirty map and its snapshots against a set of blocks, the simplest thing that is right.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

const BLOCKS: u64 = 2 * BLOCKS_PER_REGION + 1500;

fn extent() -> impl Strategy<Value = Extent> {
    let start = prop_oneof![
        0..BLOCKS,
        Just(BLOCKS_PER_REGION - 1),
        Just(0),
        BLOCKS - 70..BLOCKS
    ];
    let count = prop_oneof![
        4 => 1u64..5,
        2 => 60u64..200,
        1 => Just(BLOCKS_PER_REGION),
        1 => Just(BLOCKS),
    ];
    (start, count).prop_map(|(s, c)| Extent::new(s, c))
}

fn model_of(map: &DirtyMap) -> BTreeSet<u64> {
    map.extents(Block(0))
        .flat_map(|e| e.iter().map(|b| b.0))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn behaves_as_a_set_of_blocks(
        ours in prop::collection::vec(extent(), 0..12),
        theirs in prop::collection::vec(extent(), 0..12),
        suspects in prop::collection::vec(0u64..70, 0..3),
    ) {
        let budget = Budget::new(3);
        let mut a = DirtyMap::new(BLOCKS, &budget);
        let mut b = DirtyMap::new(BLOCKS, &budget);
        let mut model = BTreeSet::new();
        for e in ours {
            a.set(e);
            model.extend(e.iter().map(|b| b.0).filter(|b| *b < BLOCKS));
        }
        for s in suspects {
            a.suspect_area(Area(s));
            model.extend(Area(s).blocks().iter().map(|b| b.0).filter(|b| *b < BLOCKS));
        }
        prop_assert_eq!(a.count(), model.len() as u64);
        prop_assert_eq!(&model_of(&a), &model);
        for e in theirs {
            b.set(e);
            model.extend(e.iter().map(|b| b.0).filter(|b| *b < BLOCKS));
        }
        let before = model_of(&b);
        let copy = b.clone();
        a.union(&b);
        b.set(Extent::new(7, 1));
        prop_assert_eq!(model_of(&copy), before, "a copy shares pages but not later changes");
        prop_assert_eq!(&model_of(&a), &model);
        prop_assert_eq!(a.count(), model.len() as u64);
        for area in 0..BLOCKS.div_ceil(BLOCKS_PER_AREA) {
            let blocks = area * BLOCKS_PER_AREA..(area + 1) * BLOCKS_PER_AREA;
            prop_assert_eq!(a.touches(Area(area)), model.range(blocks).next().is_some());
        }
    }

    #[test]
    fn without_memory_more_is_dirty_and_never_less(
        sets in prop::collection::vec(extent(), 1..20),
    ) {
        let budget = Budget::with_limit(size_of::<Bits>());
        let mut map = DirtyMap::new(BLOCKS, &budget);
        let mut model = BTreeSet::new();
        for e in sets {
            map.set(e);
            model.extend(e.iter().map(|b| b.0).filter(|b| *b < BLOCKS));
            prop_assert!(budget.used() <= budget.limit());
        }
        for b in 0..BLOCKS {
            if model.contains(&b) {
                prop_assert!(map.test(Block(b)));
            } else if map.test(Block(b)) {
                prop_assert!(map.suspect().contains(Block(b).area()), "what was added is suspect");
            }
        }
    }
}

#[test]
fn extents_are_as_long_as_can_be_and_stop_at_the_limit() {
    let budget = Budget::new(3);
    let mut map = DirtyMap::new(BLOCKS, &budget);
    map.set(Extent::new(100, 200));
    map.set(Extent::new(BLOCKS_PER_REGION - 10, 20));
    let all: Vec<_> = map.extents(Block(0)).collect();
    assert_eq!(
        all,
        [
            Extent::new(100, 200),
            Extent::new(BLOCKS_PER_REGION - 10, 20)
        ]
    );
    let run = next_run(
        |w| map.word(w),
        |r| map.touches_region(r),
        Block(130),
        50,
        BLOCKS,
    );
    assert_eq!(run, Some(Extent::new(130, 50)));
}

#[test]
fn a_tebibyte_stays_in_its_budget_in_every_shape() {
    let blocks = (1u64 << 40) / BLOCK_BYTES;
    let regions = blocks / BLOCKS_PER_REGION;
    let budget = Budget::new(regions);

    // All dirty, block by block within each region's border: every page becomes Full and is free.
    let mut full = DirtyMap::new(blocks, &budget);
    full.set(Extent::new(0, blocks / 2));
    for r in (regions / 2)..(regions / 2 + 4) {
        for b in 0..BLOCKS_PER_REGION {
            full.set(Extent::new(r * BLOCKS_PER_REGION + b, 1));
        }
    }
    assert_eq!(budget.used(), 0, "a full page holds no bits");

    // The worst shape: every region is partly dirty, in maps of eight replicas that share nothing.
    let maps: Vec<DirtyMap> = (0..8u64)
        .map(|m| {
            let mut map = DirtyMap::new(blocks, &budget);
            for r in 0..regions {
                map.set(Extent::new(r * BLOCKS_PER_REGION + m * 2, 1));
            }
            map
        })
        .collect();
    let tables: usize = maps.iter().map(DirtyMap::memory).sum();
    assert!(budget.used() <= 32 << 20);
    assert!(tables <= 2 << 20, "{tables} bytes beside the pages");
    for (m, map) in maps.iter().enumerate() {
        assert!((0..regions).all(|r| map.test(Block(r * BLOCKS_PER_REGION + m as u64 * 2))));
    }
    drop(maps);
    assert_eq!(budget.used(), 0);
}

#[test]
fn a_typical_working_set_of_a_tebibyte_takes_under_four_mebibytes() {
    let blocks = (1u64 << 40) / BLOCK_BYTES;
    let budget = Budget::new(blocks / BLOCKS_PER_REGION);
    let mut map = DirtyMap::new(blocks, &budget);
    // A tenth of the regions written to at random places.
    for i in 0..200_000u64 {
        let region = i % 820 * 10;
        map.set(Extent::new(
            region * BLOCKS_PER_REGION + i * 7919 % BLOCKS_PER_REGION,
            1,
        ));
    }
    assert!(budget.used() + map.memory() <= 4 << 20);
}
