//! Runs seeds, and makes of one that fails the smallest run that still does.

use crate::swarm::{Swarm, Tally};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Run; what went wrong, if something did.
pub fn run(swarm: &Swarm) -> Result<Tally, String> {
    catch_unwind(AssertUnwindSafe(|| swarm.run())).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
            .unwrap_or_default()
    })
}

/// A failing run in words: what failed, the smallest run that still fails, and how to replay it.
#[must_use]
pub fn report(swarm: &Swarm, why: &str) -> String {
    std::panic::set_hook(Box::new(|_| {}));
    let (small, shrunk) = shrink(swarm, why);
    drop(std::panic::take_hook());
    let faults: Vec<String> = small.faults.iter().map(ToString::to_string).collect();
    format!(
        "seed {}: {why}\nshrunk: {shrunk}\nreplay: FORERUN_SEED={} FORERUN_FAULTS={} \
         FORERUN_MILLIS={} cargo nextest run -p forerun-sim --test random",
        swarm.seed,
        small.seed,
        faults.join(","),
        small.millis
    )
}

fn shrink(swarm: &Swarm, why: &str) -> (Swarm, String) {
    let (mut best, mut why) = (swarm.clone(), why.to_owned());
    loop {
        let fewer = best.faults.iter().map(|f| {
            let mut s = best.clone();
            s.faults.remove(f);
            s
        });
        let shorter = Swarm {
            millis: best.millis * 2 / 3,
            ..best.clone()
        };
        let mut candidates = fewer.chain((best.millis > 5).then_some(shorter));
        let smaller = candidates.find_map(|s| run(&s).err().map(|w| (s, w)));
        match smaller {
            Some(smaller) => (best, why) = smaller,
            None => return (best, why),
        }
    }
}
