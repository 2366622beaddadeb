//! What happens to the fleet, and when.

use crate::fleet_processes::link::{Link, Slow, Spoil, Way};
use crate::fleet_processes::{Fleet, Running, Who};
use crate::memory::Memory;
use nix::sys::signal::Signal;
use proto::v1::VolumeRole;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often memory is looked at, and whether something is due.
const LOOK: Duration = Duration::from_millis(200);
/// How often the volumes' replicas are looked after.
const TEND: Duration = Duration::from_secs(1);
/// Within this time everything comes to rest once it is healed.
const REST: Duration = Duration::from_secs(90);
/// One node is not killed for so long, and then the other: whether memory grows shows in long lives.
const SPARED_SECONDS: u64 = 240;
const NODES: [Who; 2] = [Who::Source, Who::Target];

/// Numbers that are drawn, the same for the same seed.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % n
    }

    fn millis(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(least + self.below(most - least))
    }
}

/// What was done.
#[derive(Clone, Copy, Default)]
pub struct Told {
    pub events: u64,
    kills: u64,
    stops: u64,
    links: u64,
    cutovers: u64,
    moved: u64,
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Told {
            events,
            kills,
            stops,
            links,
            cutovers,
            moved,
        } = self;
        write!(
            f,
            "{events} events ({kills} SIGKILL, {stops} SIGSTOP, {links} link, {cutovers} cutovers of \
             which {moved} said that they succeeded)"
        )
    }
}

/// What ends a trouble.
enum Remedy {
    Restart(Who),
    Continue(Who),
    Heal(usize),
}

struct Order {
    what: &'static str,
    command: Running,
}

struct Volume {
    name: &'static str,
    order: Option<Order>,
}

pub struct Fate {
    fleet: Fleet,
    /// Nobody is killed: for memory, which shows in long lives.
    is_sparing: bool,
    kills: Arc<[AtomicU64; 2]>,
    dice: Dice,
    began: Instant,
    next: Instant,
    tended: Instant,
    due: Vec<(Instant, Remedy)>,
    volumes: [Volume; 2],
    told: Told,
}

impl Fate {
    pub fn new(
        fleet: Fleet,
        kills: Arc<[AtomicU64; 2]>,
        dice: Dice,
        volumes: [&'static str; 2],
    ) -> Fate {
        let now = Instant::now();
        Fate {
            fleet,
            is_sparing: std::env::var_os("FORERUN_TORTURE_SPARE").is_some(),
            kills,
            dice,
            began: now,
            next: now + Duration::from_secs(1),
            tended: now,
            due: Vec::new(),
            volumes: volumes.map(|name| Volume { name, order: None }),
            told: Told::default(),
        }
    }

    fn say(&self, what: &str) {
        eprintln!("{:7.1} s  {what}", self.began.elapsed().as_secs_f64());
    }

    /// A short while, and what is due in it.
    pub fn go_on(&mut self, memory: &mut Memory) {
        std::thread::sleep(LOOK);
        for who in [Who::Controller, Who::Source, Who::Target] {
            if let Some(pid) = self.fleet.pid(who) {
                memory.sample(pid);
            }
        }
        self.remedy(Instant::now());
        self.listen();
        if self.tended.elapsed() > TEND {
            self.tend();
            self.tended = Instant::now();
        }
        if Instant::now() > self.next {
            self.strike();
            self.next = Instant::now() + self.dice.millis(300, 3000);
        }
    }

    fn remedy(&mut self, until: Instant) {
        for (_, remedy) in self
            .due
            .extract_if(.., |d| d.0 <= until)
            .collect::<Vec<_>>()
        {
            match remedy {
                Remedy::Restart(who) => {
                    self.fleet.restart(who);
                    self.say(&format!("{who:?} is back"));
                }
                Remedy::Continue(who) => {
                    // It may have been killed meanwhile.
                    if self.fleet.pid(who).is_some() {
                        self.fleet.signal(who, Signal::SIGCONT);
                    }
                    self.say(&format!("{who:?} goes on"));
                }
                Remedy::Heal(to) => {
                    for link in self.links(to) {
                        link.heal();
                    }
                    self.say(&format!("the link to {:?} is healed", NODES[to]));
                }
            }
        }
    }

    fn links(&self, to: usize) -> [&Link; 2] {
        self.fleet.ways[to].of_nodes()
    }

    fn later(&mut self, least: u64, most: u64, remedy: Remedy) -> Duration {
        let after = self.dice.millis(least, most);
        self.due.push((Instant::now() + after, remedy));
        after
    }

    /// Whether a node answers.
    fn is_well(&self, who: Who) -> bool {
        let ill = |r: &(Instant, Remedy)| match r.1 {
            Remedy::Restart(w) | Remedy::Continue(w) => w == who,
            Remedy::Heal(_) => false,
        };
        !self.due.iter().any(ill)
    }

    fn strike(&mut self) {
        self.told.events += 1;
        let to = self.dice.below(2) as usize;
        let node = NODES[to];
        match self.dice.below(16) {
            0 | 1 => self.kill(node),
            2 => self.kill(Who::Controller),
            3 => {
                self.kill(Who::Source);
                self.kill(Who::Target);
            }
            4 | 5 => self.stop(node),
            6 => self.trouble(to, "is cut", |l, _| l.cut()),
            7 => {
                let way = [Way::Forth, Way::Back][self.dice.below(2) as usize];
                let what = format!("is stalled {way:?}");
                self.lasting_trouble(to, &what, |l| l.stall(way));
            }
            8 => self.lasting_trouble(to, "is partitioned", |l| {
                l.stall(Way::Forth);
                l.stall(Way::Back);
            }),
            9 => self.trouble(to, "is half open", |l, _| l.half_open()),
            10 => {
                let spoils = [Spoil::Flip, Spoil::Twice, Spoil::Swap, Spoil::Half];
                let spoil = spoils[self.dice.below(4) as usize];
                let way = [Way::Forth, Way::Back][self.dice.below(2) as usize];
                let nth = self.dice.below(20) as u32;
                let what = format!("will spoil a frame {way:?}: {spoil:?}");
                self.trouble(to, &what, |l, frames| {
                    if frames {
                        l.spoil_nth(way, nth, spoil);
                    }
                });
            }
            11 => self.lasting_trouble(to, "is slow", |l| {
                l.slow_down(Slow {
                    delay: Duration::from_millis(10),
                    bytes_per_second: 20 << 20,
                });
            }),
            _ => self.cut_over(),
        }
    }

    fn kill(&mut self, who: Who) {
        let spared = NODES[(self.began.elapsed().as_secs() / SPARED_SECONDS % 2) as usize];
        if self.is_sparing || who == spared || self.fleet.pid(who).is_none() {
            return;
        }
        if let Some(i) = NODES.iter().position(|n| *n == who) {
            self.kills[i].fetch_add(1, Ordering::AcqRel);
        }
        self.fleet.kill(who);
        self.told.kills += 1;
        let after = self.later(0, 1500, Remedy::Restart(who));
        self.say(&format!("SIGKILL {who:?}, for {after:?}"));
    }

    fn stop(&mut self, who: Who) {
        if !self.is_well(who) {
            return;
        }
        self.fleet.signal(who, Signal::SIGSTOP);
        self.told.stops += 1;
        let after = self.later(100, 6000, Remedy::Continue(who));
        self.say(&format!("SIGSTOP {who:?}, for {after:?}"));
    }

    fn trouble(&mut self, to: usize, what: &str, strike: impl Fn(&Link, bool)) {
        let [replication, nbd] = self.links(to);
        strike(replication, true);
        strike(nbd, false);
        self.told.links += 1;
        self.say(&format!("the link to {:?} {what}", NODES[to]));
    }

    fn lasting_trouble(&mut self, to: usize, what: &str, strike: impl Fn(&Link)) {
        self.trouble(to, what, |link, _| strike(link));
        self.later(300, 8000, Remedy::Heal(to));
    }

    /// What the commands that are under way have to say.
    fn listen(&mut self) {
        let mut news = Vec::new();
        for volume in &mut self.volumes {
            let Some(order) = &mut volume.order else {
                continue;
            };
            let Some(success) = order.command.ended() else {
                continue;
            };
            let how = if success {
                "succeeded".to_owned()
            } else {
                format!("failed: {}", order.command.said().trim())
            };
            news.push(format!("{} of {} {how}", order.what, volume.name));
            self.told.moved += u64::from(success && order.what == "cutover");
            volume.order = None;
        }
        for news in news {
            self.say(&news);
        }
    }

    fn owner(&self, volume: &str) -> Option<usize> {
        (0..2).find(|i| {
            let answers = self.is_well(NODES[*i]) && self.fleet.pid(NODES[*i]).is_some();
            let report = || self.fleet.report(NODES[*i], volume);
            answers && report().is_some_and(|r| r.role() == VolumeRole::Owner)
        })
    }

    /// A new owner gets a replica at the former one.
    fn tend(&mut self) {
        for i in 0..self.volumes.len() {
            let name = self.volumes[i].name;
            if self.volumes[i].order.is_some() {
                continue;
            }
            let Some(owner) = self.owner(name) else {
                continue;
            };
            let report = self.fleet.report(NODES[owner], name);
            if report.is_none_or(|r| !r.replicas.is_empty()) {
                continue;
            }
            let to = ["b", "a"][owner];
            let how = ["--consistency", "bounded=500ms", "--no-wait"];
            let args = [&["replica", "add", name, "--to", to][..], &how].concat();
            self.order(i, "replica add", &args);
        }
    }

    fn cut_over(&mut self) {
        let i = self.dice.below(2) as usize;
        let name = self.volumes[i].name;
        let idle = self.volumes[i].order.is_none();
        if let Some(owner) = self.owner(name).filter(|_| idle) {
            self.told.cutovers += 1;
            self.order(i, "cutover", &["cutover", name, "--to", ["b", "a"][owner]]);
        }
    }

    fn order(&mut self, i: usize, what: &'static str, args: &[&str]) {
        self.say(&args.join(" "));
        let command = self.fleet.begin(args);
        self.volumes[i].order = Some(Order { what, command });
    }

    /// Whether the controller has nothing left to do: it goes on with commands whose callers it has lost.
    fn nothing_runs(&self) -> bool {
        let running = self.fleet.try_run(&["operation", "list", "--running"]);
        running.is_ok_and(|all| all.as_array().is_some_and(Vec::is_empty))
    }

    /// Everything is healed and every command ends, also one of which torture was told that it failed because
    /// the controller was killed: a cutover that came to its end later moved a volume whose owner was asked for
    /// its replica. Both volumes have a replica.
    pub fn relent(mut self) -> (Fleet, Told) {
        self.say("everything is healed");
        let far = Instant::now() + Duration::from_secs(3600);
        self.remedy(far);
        (0..2).for_each(|to| self.links(to).iter().for_each(|l| l.heal()));
        let until = Instant::now() + REST;
        loop {
            self.listen();
            self.tend();
            let replicated = |v: &Volume| {
                let report = self.fleet.report(NODES[self.owner(v.name)?], v.name)?;
                Some(v.order.is_none() && !report.replicas.is_empty())
            };
            if self.nothing_runs() && self.volumes.iter().all(|v| replicated(v) == Some(true)) {
                return (self.fleet, self.told);
            }
            assert!(Instant::now() < until, "it does not come to rest");
            std::thread::sleep(LOOK);
        }
    }
}
