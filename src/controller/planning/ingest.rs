//! What happened since the last cycle, written into the history.
//!
//! ```text
//! heartbeats: nodes, volumes ─┐
//! Prometheus, CSV ────────────┼─► frames by time ─► history::Kept
//! series files ───────────────┘
//! ```
//!
//! Times are those of this host's clock, one for each period, and each is sampled once: a cycle that
//! runs twice, or again after a restart, adds nothing. What a source did not answer is asked again, and
//! what it says late is taken. What it says of times to come waits for them, and is said.

use super::{Planning, now};
use crate::controller::config::{Measured, SourceConfig};
use crate::controller::{Controller, Nodes};
use crate::fleet::{Node, Volume};
use crate::history::{CsvFiles, Exporter, Histories, Key, Metric, Prometheus, Source, Span};
use crate::store::Store;
use node::Result;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// Samples of each series that a source is asked for at a time: six hours of five minutes, so that a
/// fleet's month does not have to fit into memory.
const ASKED: i64 = 72;
/// A source is asked again for the samples of so many periods: whoever writes them may be late.
const LATE: i64 = 3;
/// A clock that went further than this many periods beside the time that passed has jumped.
const JUMP: i64 = 3;

/// Whose history a node's is kept as.
pub(super) fn of_node(name: &str) -> String {
    format!("node/{name}")
}

/// A volume's.
pub(super) fn of_volume(name: &str) -> String {
    format!("volume/{name}")
}

/// A VM's.
pub(super) fn of_vm(name: &str) -> String {
    format!("vm/{name}")
}

/// Whoever measures the fleet beside its nodes.
enum Outside {
    Prometheus(Prometheus),
    Csv(CsvFiles),
}

impl Source for Outside {
    async fn histories(&self, span: Span) -> Result<Histories> {
        match self {
            Outside::Prometheus(source) => source.histories(span).await,
            Outside::Csv(source) => source.histories(span).await,
        }
    }
}

impl Outside {
    /// The time up to which it is asked by a clock: files hold what they hold, and what a Prometheus answers
    /// of times to come is not measured but drawn on.
    fn asked_to(&self, clock: i64) -> i64 {
        match self {
            Outside::Prometheus(_) => clock,
            Outside::Csv(_) => i64::MAX,
        }
    }

    /// Seconds that its clock is before or behind this host's, where it has one of its own.
    async fn clock_ahead(&self) -> Result<i64> {
        let Outside::Prometheus(source) = self else {
            return Ok(0);
        };
        let before = now().0 as i64;
        let theirs = source.clock().await?;
        // whatever the question took is nobody's fault
        let after = before.max(now().0 as i64);
        Ok(theirs - theirs.clamp(before, after))
    }
}

/// What a source had beside what was taken of it.
#[derive(Default)]
struct Ahead {
    samples: usize,
    seconds: i64,
}

impl Ahead {
    fn add(&mut self, seconds: i64) {
        self.samples += 1;
        self.seconds = self.seconds.max(seconds);
    }

    fn note(&self, source: &Told, clock_ahead: i64, period: i64) -> Option<String> {
        let name = &source.name;
        if clock_ahead.abs() > period {
            let (far, way) = (
                clock_ahead.abs(),
                if clock_ahead > 0 {
                    "ahead of"
                } else {
                    "behind"
                },
            );
            return Some(format!(
                "{name}: its clock is {far} s {way} this host's, and what it measures counts for the wrong \
                 time: set one of them"
            ));
        }
        (self.samples > 0).then(|| {
            format!(
                "{name}: {} samples are of times that come in up to {} s; each counts when its time has \
                 come. Set whichever clock is wrong",
                self.samples, self.seconds
            )
        })
    }
}

/// A source as it is configured.
pub(super) struct Told {
    /// As notes call it.
    name: String,
    outside: Outside,
    of: Measured,
    /// Its names by ours, where they differ.
    names: BTreeMap<String, String>,
}

impl Told {
    pub fn new(config: &SourceConfig) -> Result<Told> {
        let outside = match &config.prometheus {
            Some(url) => Outside::Prometheus(Prometheus::new(
                url,
                match config.of {
                    Measured::Nodes => Exporter::Node,
                    Measured::Vms => Exporter::Libvirt,
                },
            )?),
            None => Outside::Csv(CsvFiles {
                files: config.csv.clone(),
            }),
        };
        let files = config.csv.iter().map(|f| f.display().to_string());
        let name = match &config.prometheus {
            Some(url) => format!("the Prometheus at {url}"),
            None => files.collect::<Vec<_>>().join(", "),
        };
        Ok(Told {
            name,
            outside,
            of: config.of,
            names: config.names.clone(),
        })
    }

    /// The VM whose disk a volume is.
    pub fn vm_of<'a>(&'a self, volume: &'a str) -> Option<&'a str> {
        let is_of_vms = self.of == Measured::Vms;
        is_of_vms.then(|| self.names.get(volume).map_or(volume, String::as_str))
    }

    /// Whose history samples of one of its machines belong to; none if nobody asks for them.
    fn key(&self, machine: &str, nodes: &[Node], volumes: &[Volume]) -> Option<String> {
        match self.of {
            Measured::Vms => {
                let mut all = volumes.iter();
                let is_asked = all.any(|v| self.vm_of(v.name.as_str()) == Some(machine));
                is_asked.then(|| of_vm(machine))
            }
            Measured::Nodes => {
                let host = |address: &str| {
                    let (host, _) = address.rsplit_once(':').unwrap_or((address, ""));
                    host.to_owned()
                };
                let is_it = |n: &&Node| match self.names.get(n.name.as_str()) {
                    Some(theirs) => theirs == machine,
                    None => {
                        let at = host(machine);
                        machine == n.name.as_str()
                            || at == n.name.as_str()
                            || at == host(&n.address)
                    }
                };
                let mut found = nodes.iter().filter(is_it);
                // several nodes of one host: which it is has to be said
                let one = found.next().filter(|_| found.next().is_none())?;
                Some(of_node(one.name.as_str()))
            }
        }
    }
}

/// Totals that only grow, as rates.
#[derive(Default)]
pub(super) struct Totals(BTreeMap<Key, (i64, u64)>);

impl Totals {
    /// What a total grew by in a second since it was seen last. None at first, when the clock did not
    /// advance, and when the total fell because its counter began anew.
    fn rate(&mut self, key: &Key, at: i64, total: u64) -> Option<f64> {
        let before = self.0.insert(key.clone(), (at, total))?;
        let seconds = at - before.0;
        let grown = total.checked_sub(before.1)?;
        (seconds > 0).then(|| grown as f64 / seconds as f64)
    }

    /// Forget those of whom nothing is said any more.
    fn retain(&mut self, said: &BTreeSet<Key>) {
        self.0.retain(|key, _| said.contains(key));
    }
}

/// What ingestion remembers between two cycles.
#[derive(Default)]
pub(super) struct Ingested {
    totals: Totals,
    /// Up to when each source has answered, by its place in the configuration.
    told: BTreeMap<usize, Option<i64>>,
    /// What is wrong with a source, by its place.
    troubles: BTreeMap<usize, String>,
    /// When this host's clock was looked at.
    clock: Option<(Instant, i64)>,
}

impl Ingested {
    /// What is wrong with the clock, if anything is: it jumped, or it is behind what is known.
    fn clock_trouble(&mut self, clock: i64, newest: Option<i64>, period: i64) -> Option<String> {
        let before = self.clock.replace((Instant::now(), clock));
        if let Some(ahead) = newest.map(|at| at - clock).filter(|ahead| *ahead > period) {
            return Some(format!(
                "the history has samples of a time that comes in {ahead} s: this host's clock was \
                 set back; what lies ahead of it is not looked at"
            ));
        }
        let (then, was) = before?;
        let jump = clock - was - then.elapsed().as_secs() as i64;
        (jump.abs() > JUMP * period.max(20)).then(|| {
            format!(
                "this host's clock jumped by {jump} s: forecasts take it for a time in which nothing \
                 was measured"
            )
        })
    }
}

impl Planning {
    /// What is wrong with the clock and with sources, each in a sentence, for as long as it is.
    pub(super) fn troubles(&self) -> Vec<String> {
        let seen = self.seen();
        let of_sources = seen.ingested.troubles.values();
        (seen.clock_trouble.iter().chain(of_sources).cloned()).collect()
    }
}

impl<S: Store, N: Nodes> Controller<S, N> {
    /// Write down what is new. What could not be had is in [`Planning::troubles`].
    pub(super) async fn ingest(&self, planning: &Planning) -> Result<()> {
        let period = planning.config.period_seconds as i64;
        let clock = now().0 as i64;
        let point = clock / period * period;
        let (newest, newest_of_all) = planning.kept.newest(clock).await?;
        let trouble = {
            let mut seen = planning.seen();
            let found = seen.ingested.clock_trouble(clock, newest_of_all, period);
            let before = std::mem::replace(&mut seen.clock_trouble, found.clone());
            found.filter(|found| {
                // how far is another number each time: said once until it is over
                before.is_none() || !found.starts_with("the history")
            })
        };
        if let Some(trouble) = trouble {
            tracing::warn!("{trouble}");
            self.announce("clock-wrong", "", trouble).await?;
        }
        if newest.is_some_and(|newest| newest >= point) {
            return Ok(());
        }
        let nodes = self.inner.records.nodes().await?;
        let volumes = self.inner.records.volumes().await?;
        let own = self.said(planning, point, &nodes, &volumes);
        planning.seen().lap.samples = own.len();
        // what sources know counts before what nodes say: of two samples the second
        planning.kept.append(point, clock, own).await?;
        for (i, source) in planning.sources.iter().enumerate() {
            let oldest = point - planning.kept_seconds();
            let told = *planning.seen().ingested.told.entry(i).or_insert(newest);
            let from = told.map_or(oldest, |told| told - LATE * period);
            let from = from.max(oldest) + period;
            let taken = self
                .take_over(planning, source, from, point, &nodes, &volumes)
                .await;
            let ingested = &mut planning.seen().ingested;
            let trouble = match taken {
                Ok(trouble) => {
                    ingested.told.insert(i, Some(point));
                    trouble
                }
                Err(e) => Some(format!(
                    "{e}; it is asked again, what nodes say counts meanwhile"
                )),
            };
            match trouble {
                Some(trouble) => ingested.troubles.insert(i, trouble),
                None => ingested.troubles.remove(&i),
            };
        }
        Ok(())
    }

    /// Take what a source knows from one time to another, a few hours at a time. The answer is what is
    /// wrong with its times.
    async fn take_over(
        &self,
        planning: &Planning,
        source: &Told,
        mut from: i64,
        to: i64,
        nodes: &[Node],
        volumes: &[Volume],
    ) -> Result<Option<String>> {
        let step = planning.config.period_seconds as i64;
        let mut ahead = Ahead::default();
        while from <= to {
            let upto = to.min(from + (ASKED - 1) * step);
            let is_last = upto == to;
            let span = Span {
                from,
                to: if is_last {
                    source.outside.asked_to(upto)
                } else {
                    upto
                },
                step: u32::try_from(step).unwrap_or(u32::MAX),
            };
            let mut frames: BTreeMap<i64, Vec<(Key, f64)>> = BTreeMap::new();
            for (theirs, samples) in source.outside.histories(span).await? {
                let Some(machine) = source.key(&theirs.machine, nodes, volumes) else {
                    continue;
                };
                let key = Key { machine, ..theirs };
                for (at, value) in samples {
                    let point = at.saturating_add(step / 2).div_euclid(step) * step;
                    if point > upto && at > now().0 as i64 + step {
                        ahead.add(at - now().0 as i64);
                    }
                    if (from..=upto).contains(&point) {
                        frames.entry(point).or_default().push((key.clone(), value));
                    }
                }
            }
            for (at, samples) in frames {
                planning.kept.append(at, to, samples).await?;
            }
            from = upto + step;
        }
        Ok(ahead.note(source, source.outside.clock_ahead().await?, step))
    }

    /// What nodes said of themselves and of their volumes.
    fn said(
        &self,
        planning: &Planning,
        at: i64,
        nodes: &[Node],
        volumes: &[Volume],
    ) -> Vec<(Key, f64)> {
        let mut seen = planning.seen();
        let totals = &mut seen.ingested.totals;
        let (mut samples, mut counted) = (Vec::new(), BTreeSet::new());
        let mut count = |samples: &mut Vec<(Key, f64)>, key: Key, total: u64| {
            if let Some(rate) = totals.rate(&key, at, total) {
                samples.push((key.clone(), rate));
            }
            counted.insert(key);
        };
        for n in nodes {
            let Some(word) = self.inner.presence.word(&n.name).filter(|w| w.alive) else {
                continue;
            };
            let (m, name) = (word.metrics, n.name.as_str());
            let of = |metric| Key {
                machine: of_node(name),
                metric,
            };
            let share = |word: &str| {
                let file = planning
                    .series(name, word)
                    .and_then(std::result::Result::ok);
                file.and_then(|series| series.values.last().copied())
            };
            let cores = f64::from(m.cpus);
            let busy = share("cpu").unwrap_or(f64::from(m.cpu_permille) / 1000.0);
            samples.push((of(Metric::Cpu), busy * cores));
            let all = m.memory_total_bytes as f64;
            let used = all - m.memory_available_bytes as f64;
            let used = share("memory").map_or(used, |share| share * all);
            samples.push((of(Metric::Memory), used));
            count(&mut samples, of(Metric::DiskRead), m.disk_read_bytes);
            count(&mut samples, of(Metric::DiskWrite), m.disk_written_bytes);
            let (received, sent) = (m.network_received_bytes, m.network_sent_bytes);
            count(&mut samples, of(Metric::NetworkIn), received);
            count(&mut samples, of(Metric::NetworkOut), sent);
        }
        for v in volumes {
            let Some(io) = self.inner.presence.io(&v.owner, v.name.as_str()) else {
                continue;
            };
            let of = |metric| Key {
                machine: of_volume(v.name.as_str()),
                metric,
            };
            count(&mut samples, of(Metric::Reads), io.reads);
            count(&mut samples, of(Metric::Writes), io.writes);
            count(&mut samples, of(Metric::DiskRead), io.read_bytes);
            count(&mut samples, of(Metric::DiskWrite), io.written_bytes);
            let dirtied = self.inner.presence.heat.dirtied(&v.name);
            count(&mut samples, of(Metric::Dirtied), dirtied);
            let sent = self.inner.presence.traffic.sent(&v.name);
            count(&mut samples, of(Metric::Replicated), sent);
        }
        totals.retain(&counted);
        samples
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        Key {
            machine: of_node("a"),
            metric: Metric::DiskRead,
        }
    }

    #[test]
    fn totals_become_rates_and_a_restart_gives_none() {
        let mut t = Totals::default();
        let mut rate = |at, total| t.rate(&key(), at, total);
        assert_eq!(rate(10, 100), None);
        assert_eq!(rate(20, 300), Some(20.0));
        assert_eq!(rate(20, 400), None);
        assert_eq!(rate(30, 50), None);
        assert_eq!(rate(40, 60), Some(1.0));
    }

    #[test]
    fn a_clock_that_jumped_or_was_set_back_is_named() {
        let mut seen = Ingested::default();
        let mut trouble = |clock, newest| seen.clock_trouble(clock, newest, 300);
        assert_eq!(trouble(10_000, None), None);
        assert_eq!(trouble(10_300, Some(10_000)), None);
        let ahead = trouble(9_000_000, Some(10_300)).unwrap();
        assert!(ahead.contains("jumped by 89"), "{ahead}");
        let back = trouble(10_600, Some(9_000_000)).unwrap();
        assert!(back.contains("set back"), "{back}");
    }

    #[test]
    fn times_that_a_source_has_wrong_are_said() {
        let source = Told::new(&SourceConfig {
            of: Measured::Vms,
            prometheus: Some("http://127.0.0.1:1".into()),
            csv: Vec::new(),
            names: BTreeMap::new(),
        });
        let source = source.unwrap();
        let note = |samples, clock| {
            let mut ahead = Ahead::default();
            (0..samples).for_each(|i| ahead.add(i * 300));
            ahead.note(&source, clock, 300).unwrap_or_default()
        };
        assert_eq!(note(0, 0), "");
        assert_eq!(note(0, -300), "", "a period is nothing");
        assert!(note(0, 301).contains("its clock is 301 s ahead of this host's"));
        assert!(note(0, -7200).contains("its clock is 7200 s behind this host's"));
        assert!(note(3, 0).contains("3 samples are of times that come in up to 600 s"));
        assert!(note(3, 0).starts_with("the Prometheus at http://127.0.0.1:1: "));
    }

    #[test]
    fn machines_of_a_source_are_found_by_host_by_name_or_as_is_said() {
        let node = |name: &str, address: &str| Node {
            name: name.parse().unwrap(),
            site: String::new(),
            address: address.into(),
            replication_address: String::new(),
            nbd_address: String::new(),
            shape: None,
            draining: false,
        };
        let nodes = [
            node("a", "10.0.0.1:7401"),
            node("b", "10.0.0.2:7401"),
            node("c", "10.0.0.3:7401"),
            node("d", "10.0.0.3:7402"),
        ];
        let source = |of| {
            Told::new(&SourceConfig {
                of,
                prometheus: Some("http://127.0.0.1:1".into()),
                csv: Vec::new(),
                names: [("a".to_owned(), "elsewhere:9100".to_owned())].into(),
            })
            .unwrap()
        };
        let hosts = source(Measured::Nodes);
        let key = |machine: &str| hosts.key(machine, &nodes, &[]);
        assert_eq!(key("elsewhere:9100").as_deref(), Some("node/a"));
        assert_eq!(key("10.0.0.1:9100"), None, "another name was said");
        assert_eq!(key("10.0.0.2:9100").as_deref(), Some("node/b"));
        assert_eq!(key("b:9100").as_deref(), Some("node/b"));
        assert_eq!(key("10.0.0.3:9100"), None, "two nodes are there");
        let vms = source(Measured::Vms);
        assert_eq!(vms.vm_of("a"), Some("elsewhere:9100"));
        assert_eq!((vms.vm_of("web"), hosts.vm_of("web")), (Some("web"), None));
    }
}
