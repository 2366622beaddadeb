//! Nodes made and destroyed on command: what [`crate::provision`] needs of a controller, and what a
//! controller shows of it.
//!
//! ```text
//! Start(grow, retire, resize) ─► Lifecycle::begin ─► log ─► one loop a site: Lifecycle::drive
//!                                                              │ Terraform ◄── state ── /state/SITE
//!                                                              │ World: configure, seed, cut over,
//!                                                              ▼        drain, forget
//! Register(token) ─► Lifecycle::register            operations of the fleet, calls to nodes
//! ```
//!
//! The loops begin with the controller, so whatever a killed one left half done goes on.

mod show;
mod world;

#[cfg(test)]
mod tests;

pub(super) use show::operation as shown;
use world::Site;

use super::ask::hash;
use super::config::{Config, ProvisionConfig};
use super::{Controller, Nodes, unix_ms};
use crate::fleet::OperationId;
use crate::planner::Prices;
use crate::provision::{
    Backend, Backoff, Kind, Lifecycle, Limits, Module, NodeSpec, Operation, Rules, Stage, Terraform,
};
use crate::store::{Commit, Store, Transaction};
use node::{Error, ErrorKind, NodeName, Result};
use proto::v1::{self, start_request};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::Notify;

const FLEET: &str = "provision/fleet";
/// How often an operation is looked at that waits for a node or a copy.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// How often the log is read when nothing is under way.
const IDLE: Duration = Duration::from_secs(10);

/// The provisioning of one controller.
pub(super) struct Provisioning<S, N> {
    pub(super) lifecycle: Lifecycle<S, Terraform<S>, Site<S, N>>,
    pub(super) latest: show::Latest,
    sites: Vec<String>,
    root: PathBuf,
    program: PathBuf,
    prices: Option<PathBuf>,
    /// How often to look for drift, if at all.
    drift: Option<Duration>,
    wake: Notify,
}

impl<S, N> Provisioning<S, N> {
    /// Refuse to begin what Terraform is not there to finish, or to take back.
    fn check_program(&self) -> Result<()> {
        let is_there = if self.program.components().count() > 1 {
            self.program.is_file()
        } else {
            let path = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&path).any(|d| d.join(&self.program).is_file())
        };
        if is_there {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::NotFound,
            format!(
                "there is no {} on this machine: install Terraform 1.8 or later, or name it, or \
                 OpenTofu, with `terraform = \"FILE\"` in the [provision] table",
                self.program.display()
            ),
        ))
    }
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn limits(p: &ProvisionConfig) -> Limits {
    Limits {
        lock: seconds(p.lock_seconds),
        plan: seconds(p.plan_seconds),
        apply: seconds(p.apply_seconds),
        backoff: backoff(p),
    }
}

fn backoff(p: &ProvisionConfig) -> Backoff {
    Backoff {
        first: seconds(p.retry_seconds),
        tries: p.tries,
        ..Backoff::default()
    }
}

fn module(config: &Config, p: &ProvisionConfig) -> Result<Module> {
    if let Some(directory) = &p.module {
        return Ok(Module::Directory(directory.clone()));
    }
    let binary = std::env::current_exe()
        .map_err(|e| Error::io("find this program, which nodes are to run", e))?;
    let named = |s: &super::config::SiteConfig| Some((s.name.clone(), s.netns.clone()?));
    Ok(Module::Local {
        binary,
        netns: config.site.iter().filter_map(named).collect(),
    })
}

/// What sets this controller's nodes apart from another's, drawn once.
async fn fleet_id<S: Store>(store: &S) -> Result<String> {
    let fresh = crate::identity::draw()?.to_string();
    let draw = Transaction {
        expect: vec![(FLEET.into(), None)],
        write: vec![(FLEET.into(), Some(fresh.clone().into_bytes()))],
    };
    match store.commit(draw).await? {
        Commit::Done => Ok(fresh),
        Commit::Conflict => String::from_utf8(store.get(FLEET).await?.unwrap_or_default())
            .map_err(|e| Error::new(ErrorKind::Corrupt, format!("{FLEET} in the store: {e}"))),
    }
}

/// The prices as they stand now.
pub(super) fn read_prices(path: Option<&Path>) -> Result<Prices> {
    let path = path.ok_or_else(|| {
        Error::new(
            ErrorKind::Invalid,
            "there is no price table: name one with `prices = \"FILE\"` in the controller's \
             configuration",
        )
    })?;
    let text = std::fs::read_to_string(path)
        .map_err(|e| Error::io(format!("read the price table {}", path.display()), e))?;
    Prices::parse(&text)
        .map_err(|e| Error::new(ErrorKind::Invalid, format!("{}: {e}", path.display())))
}

impl<S: Store, N: Nodes> Controller<S, N> {
    /// Begin to provision as configured; what a killed controller left is taken up.
    pub(super) async fn provision(&self, config: &Config, listening: SocketAddr) -> Result<()> {
        let Some(p) = &config.provision else {
            return Ok(());
        };
        let store = self.inner.records.store().clone();
        let password = crate::identity::draw()?.to_string();
        let backend = Backend::new(store.clone(), &password);
        let asked = format!("serve Terraform's states on {}", p.state);
        let listener = (TcpListener::bind(p.state).await).map_err(|e| Error::io(&asked, e))?;
        let at = listener.local_addr().map_err(|e| Error::io(&asked, e))?;
        let router = backend.clone().router();
        tokio::spawn(async move {
            if let Err(e) = axum::serve(listener, router).await {
                tracing::error!("serving Terraform's states: {e}");
            }
        });
        let root = std::path::absolute(config.data.join("provision"))
            .map_err(|e| Error::io("find the controller's data directory", e))?;
        let terraform = Terraform::new(
            p.terraform.clone(),
            root.clone(),
            fleet_id(&*store).await?,
            module(config, p)?,
            limits(p),
            backend,
            at,
            password,
        );
        let rules = Rules {
            nodes: p.nodes,
            hour: p.hour,
            register: seconds(p.register_seconds),
            backoff: backoff(p),
        };
        let latest = show::Latest::default();
        let world = Site::new(self, config, listening, latest.clone());
        let provisioning = Provisioning {
            lifecycle: Lifecycle::open(store, terraform, world, rules).await?,
            latest,
            sites: config.site.iter().map(|s| s.name.clone()).collect(),
            root,
            program: p.terraform.clone(),
            prices: config.prices.clone(),
            drift: (p.drift_seconds > 0).then(|| seconds(p.drift_seconds)),
            wake: Notify::new(),
        };
        let provisioning = Arc::new(provisioning);
        for site in &provisioning.sites {
            tokio::spawn(
                self.clone()
                    .keep_driving(provisioning.clone(), site.clone()),
            );
        }
        // nobody else sets it: a controller begins to provision once
        let _ = self.inner.provisioning.set(provisioning);
        Ok(())
    }

    pub(super) fn provisioning(&self) -> Result<&Provisioning<S, N>> {
        let found = self.inner.provisioning.get().map(|p| &**p);
        found.ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                "make or destroy a node: this controller does not provision; give its configuration \
                 a [provision] table",
            )
        })
    }

    async fn keep_driving(self, p: Arc<Provisioning<S, N>>, site: String) {
        let mut told: BTreeMap<String, Stage> = BTreeMap::new();
        let mut is_first = true;
        let mut drift = Drift::default();
        loop {
            let woken = p.wake.notified();
            let pause = match p.lifecycle.drive(&site, unix_ms() / 1000).await {
                Ok(0) => {
                    self.look_for_drift(&p, &site, &mut drift).await;
                    p.drift.map_or(IDLE, |every| every.min(IDLE))
                }
                Ok(_) => LOOK_AGAIN,
                Err(e) => {
                    tracing::warn!("provisioning at site {site}: {e}; trying again");
                    LOOK_AGAIN
                }
            };
            match p.lifecycle.operations().await {
                Ok(all) => {
                    for o in all.iter().filter(|o| o.site == site) {
                        let before = told.insert(o.id.clone(), o.stage);
                        if o.next().is_none() {
                            p.latest.forget(o);
                        }
                        // what ended under a former controller was told by it
                        let news = before != Some(o.stage) && !(is_first && o.next().is_none());
                        if news && let Err(e) = self.tell_of(o).await {
                            tracing::warn!("{e}");
                        }
                    }
                    is_first = false;
                }
                Err(e) => tracing::warn!("provisioning at site {site}: {e}"),
            }
            // either way: look again
            let _ = tokio::time::timeout(pause, woken).await;
        }
    }

    /// Nothing is under way at a site, so what differs from what was made there is somebody else's doing.
    async fn look_for_drift(&self, p: &Provisioning<S, N>, site: &str, drift: &mut Drift) {
        if p.drift.is_none_or(|every| drift.looked.elapsed() < every) {
            return;
        }
        drift.looked = Instant::now();
        let drifted = match p.lifecycle.drifted(site).await {
            Ok(drifted) => drifted,
            Err(e) => return tracing::warn!("look for drift at site {site}: {e}"),
        };
        if drifted && !drift.is_told {
            let text = format!(
                "site {site} is not what was made there: something was changed or removed by others. Nothing \
                 is put right by itself; `forerun node-list` shows which nodes are there, and `forerun \
                 provision retire NODE` and `grow` make them anew"
            );
            tracing::warn!("{text}");
            if let Err(e) = self.announce("site-drifted", "", text).await {
                tracing::warn!("{e}");
            }
        }
        drift.is_told = drifted;
    }

    async fn tell_of(&self, o: &Operation) -> Result<()> {
        let what = format!("{} of node {} at {}", show::verb(&o.kind), o.node, o.site);
        let why = o.error.as_deref().unwrap_or_default();
        let (kind, text) = match o.stage {
            Stage::Running => ("operation-begun", format!("{what} begun")),
            Stage::Undoing => ("operation-undoing", format!("{what} is undone: {why}")),
            Stage::Done => ("operation-done", format!("{what} done")),
            Stage::Failed => ("operation-failed", format!("{what} failed: {why}")),
        };
        self.announce(kind, &o.node, text).await
    }

    /// A command that is about nodes, logged and begun; `None` for any other.
    pub(super) async fn start_provisioning(
        &self,
        id: &OperationId,
        command: &start_request::Command,
    ) -> Result<Option<v1::Operation>> {
        use start_request::Command as C;
        let (C::GrowNode(_) | C::RetireNode(_) | C::ResizeNode(_)) = command else {
            return Ok(None);
        };
        if self.inner.records.operation(id).await?.is_some() {
            return Err(Error::new(
                ErrorKind::Exists,
                format!("operation {id}: this id was used for a volume; choose a new one"),
            ));
        }
        let operation = match command {
            C::GrowNode(g) => self.grow(id, g).await?,
            C::RetireNode(r) => self.retire(id, &r.node, r.ignore_apart).await?,
            C::ResizeNode(r) => self.resize(id, r).await?,
            _ => return Ok(None),
        };
        Ok(Some(shown(&operation, &self.provisioning()?.latest)))
    }

    pub(super) async fn grow(&self, id: &OperationId, g: &v1::GrowNode) -> Result<Operation> {
        for volume in &g.volumes {
            if self.inner.records.volume(&volume.parse()?).await?.is_none() {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    format!("make a node for volume {volume}: there is no such volume"),
                ));
            }
        }
        self.make(
            id,
            Kind::Grow,
            &g.site,
            &g.shape,
            &g.node,
            g.volumes.clone(),
        )
        .await
    }

    pub(super) async fn retire(
        &self,
        id: &OperationId,
        node: &str,
        ignore_apart: bool,
    ) -> Result<Operation> {
        let p = self.provisioning()?;
        if ignore_apart && let Some(running) = p.lifecycle.ignore_apart(node).await? {
            p.wake.notify_waiters();
            return Ok(running);
        }
        let site = self.site_of("retire", node).await?;
        let now = unix_ms() / 1000;
        let retire = Operation {
            ignore_apart,
            ..Operation::new(id.as_str(), Kind::Retire, &site, node, Vec::new(), now)
        };
        let begun = p.lifecycle.begin(retire, None).await?;
        p.wake.notify_waiters();
        Ok(begun)
    }

    async fn resize(&self, id: &OperationId, r: &v1::ResizeNode) -> Result<Operation> {
        let site = self.site_of("resize", &r.node).await?;
        let old: NodeName = r.node.parse()?;
        let volumes = self.inner.records.volumes().await?;
        let on_it = volumes
            .iter()
            .filter(|v| v.owner == old || v.replica_on(&old).is_some());
        let volumes = on_it.map(|v| v.name.to_string()).collect();
        let kind = Kind::Resize {
            old: r.node.clone(),
        };
        self.make(id, kind, &site, &r.shape, "", volumes).await
    }

    async fn site_of(&self, verb: &str, node: &str) -> Result<String> {
        let nodes = self.provisioning()?.lifecycle.nodes().await?;
        let found = nodes.into_iter().find(|n| n.name == node);
        found.map(|n| n.site).ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("{verb} node {node}: it was not made by provisioning"),
            )
        })
    }

    async fn make(
        &self,
        id: &OperationId,
        kind: Kind,
        site: &str,
        shape: &str,
        name: &str,
        volumes: Vec<String>,
    ) -> Result<Operation> {
        let p = self.provisioning()?;
        let invalid = |why: String| Error::new(ErrorKind::Invalid, why);
        if !p.sites.iter().any(|s| s == site) {
            return Err(invalid(format!(
                "make a node at {site:?}: the controller's configuration has no [[site]] of that name"
            )));
        }
        (p.check_program()).map_err(|e| e.within(format!("make a node at {site}")))?;
        let prices = read_prices(p.prices.as_deref())?;
        let sold = prices.site(site).map_err(|e| invalid(e.to_string()))?;
        let shape = sold
            .shapes
            .iter()
            .find(|s| s.name == shape)
            .ok_or_else(|| {
                let names: Vec<&str> = sold.shapes.iter().map(|s| s.name.as_str()).collect();
                invalid(format!(
                    "make a node at {site}: no shape {shape:?} is sold there; there is {}",
                    names.join(", ")
                ))
            })?;
        let name: NodeName = match name {
            // the same command has the same name however often it is sent
            "" => format!("{site}-{}", &hash(&[id.as_str()])[..6]).parse()?,
            name => name.parse()?,
        };
        let people_brought_it = self.inner.records.node(&name).await?.is_some();
        let provisioned = p.lifecycle.nodes().await?;
        if people_brought_it && !provisioned.iter().any(|n| n.name == name.as_str()) {
            return Err(Error::new(
                ErrorKind::Exists,
                format!("make node {name}: a node of that name has registered; choose another"),
            ));
        }
        let directory = Module::node_directory(&p.root, site, name.as_str());
        let spec = NodeSpec {
            shape: shape.name.clone(),
            hour: shape.hour,
            config: directory.join("node.toml"),
        };
        let now = unix_ms() / 1000;
        let grow = Operation::new(id.as_str(), kind, site, name.as_str(), volumes, now);
        let begun = p.lifecycle.begin(grow, Some(spec)).await?;
        p.wake.notify_waiters();
        Ok(begun)
    }

    /// A node registers: one that was provisioned shows its token, and has its shape and site from
    /// its record.
    pub(super) async fn admit(&self, name: &str, token: &str, address: &str) -> Result<Admitted> {
        let Some(p) = self.inner.provisioning.get() else {
            return Ok(Admitted::default());
        };
        let record = p.lifecycle.nodes().await?;
        let record = record.into_iter().find(|n| n.name == name);
        if record.is_none() && token.is_empty() {
            return Ok(Admitted::default());
        }
        p.lifecycle.register(name, token, address).await?;
        p.wake.notify_waiters();
        Ok(record.map_or_else(Admitted::default, |r| Admitted {
            shape: Some(r.spec.shape),
            site: Some(r.site),
        }))
    }

    /// What there is of sites: nodes made, quarantines, and how long a node took.
    pub(super) async fn provisioned_sites(&self) -> Result<Sites> {
        let mut sites = Sites::default();
        let Some(p) = self.inner.provisioning.get() else {
            return Ok(sites);
        };
        for n in p.lifecycle.nodes().await? {
            *sites.nodes.entry(n.site).or_default() += 1;
        }
        sites.trouble = p.check_program().err().map(|e| e.to_string());
        sites.quarantined = p.lifecycle.quarantines().await?;
        let mut took: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for o in p.lifecycle.operations().await? {
            if let Some(at) = o.registered {
                took.entry(o.site)
                    .or_default()
                    .push(at.saturating_sub(o.started));
            }
        }
        for (site, mut all) in took {
            all.sort_unstable();
            sites.seconds.insert(site, all[all.len() / 2].max(1));
        }
        Ok(sites)
    }

    pub(super) async fn end_quarantine(&self, site: &str) -> Result<()> {
        let p = self.provisioning()?;
        if !p.sites.iter().any(|s| s == site) {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("end the quarantine of {site:?}: there is no such site"),
            ));
        }
        p.lifecycle.end_quarantine(site).await
    }
}

/// What is known of whether a site is still what was made there.
struct Drift {
    looked: Instant,
    is_told: bool,
}

impl Default for Drift {
    fn default() -> Drift {
        Drift {
            looked: Instant::now(),
            is_told: false,
        }
    }
}

/// Sites as provisioning knows them, by name.
#[derive(Default)]
pub(super) struct Sites {
    /// Nodes that it made or is making.
    pub nodes: BTreeMap<String, usize>,
    /// Those that get no new ones, and why.
    pub quarantined: BTreeMap<String, String>,
    /// Why none can be made anywhere.
    pub trouble: Option<String>,
    /// The median time from command to registration.
    pub seconds: BTreeMap<String, u64>,
}

/// What is known of a node that registers; nothing of one that people brought.
#[derive(Default)]
pub(super) struct Admitted {
    pub shape: Option<String>,
    pub site: Option<String>,
}
