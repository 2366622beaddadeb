//! What the processes hold resident: the most, and whether it grows. What grows is looked for in memory of
//! their own: pages of the program and of mapped files are there once they were used, and the kernel takes
//! them back.

use std::collections::BTreeMap;
use std::time::Instant;

/// A process's first minute, in which it takes what it needs, is no growth.
const WARM_UP_SECONDS: f64 = 60.0;

#[derive(Default)]
struct Life {
    samples: Vec<(f64, f64)>,
}

/// Samples of every process that lived, by its id.
pub struct Memory {
    began: Instant,
    lives: BTreeMap<u32, Life>,
    pub peak_mib: f64,
}

impl Memory {
    pub fn new() -> Memory {
        Memory {
            began: Instant::now(),
            lives: BTreeMap::new(),
            peak_mib: 0.0,
        }
    }

    pub fn sample(&mut self, pid: u32) {
        let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else {
            return;
        };
        let kib = |name: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(name))?;
            line.trim().strip_suffix(" kB")?.parse::<f64>().ok()
        };
        let (Some(all), Some(own)) = (kib("VmRSS:"), kib("RssAnon:")) else {
            return;
        };
        let now = self.began.elapsed().as_secs_f64() / 60.0;
        self.peak_mib = self.peak_mib.max(all / 1024.0);
        self.lives.entry(pid).or_default().samples.push((now, own));
    }

    /// What each long life held after its first minute and in the end, in KiB.
    pub fn lives(&self) -> Vec<(f64, f64, f64)> {
        let long = |life: &Life| {
            let (born, _) = life.samples.first()?;
            let old = |s: &&(f64, f64)| s.0 - born > WARM_UP_SECONDS / 60.0;
            let first = life.samples.iter().find(old)?;
            let last = life.samples.last()?;
            (last.0 - born > 2.0).then_some((last.0 - born, first.1, last.1))
        };
        self.lives.values().filter_map(long).collect()
    }

    /// KiB a minute, the best straight line through all lives, each with a level of its own; and the
    /// minutes that it is made of.
    pub fn slope(&self) -> (f64, f64) {
        let (mut covariance, mut variance, mut minutes) = (0.0, 0.0, 0.0);
        for life in self.lives.values() {
            let Some((born, _)) = life.samples.first() else {
                continue;
            };
            let old = |s: &&(f64, f64)| s.0 - born > WARM_UP_SECONDS / 60.0;
            let grown: Vec<_> = life.samples.iter().filter(old).collect();
            let (Some(first), Some(last)) = (grown.first(), grown.last()) else {
                continue;
            };
            minutes += last.0 - first.0;
            let n = grown.len() as f64;
            let t = grown.iter().map(|s| s.0).sum::<f64>() / n;
            let m = grown.iter().map(|s| s.1).sum::<f64>() / n;
            for s in grown {
                covariance += (s.0 - t) * (s.1 - m);
                variance += (s.0 - t) * (s.0 - t);
            }
        }
        let slope = if variance > 0.0 {
            covariance / variance
        } else {
            0.0
        };
        (slope, minutes)
    }
}
