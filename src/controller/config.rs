//! The controller's configuration.
//!
//! ```toml
//! listen = "10.9.0.1:7400"
//! data = "/var/lib/forerun/controller"
//! prices = "/etc/forerun/prices.toml"
//!
//! [provision]                       # without it no node is ever made
//! terraform = "terraform"
//! nodes = 4                         # the most at a site
//! hour = 2.0                        # the most that a site's nodes may cost in an hour
//!
//! [planning]                        # without it no plan is made
//! mode = "advise"
//!
//! [[planning.source]]               # beside what nodes say of themselves
//! of = "nodes"
//! prometheus = "http://127.0.0.1:9090"
//!
//! [[site]]                          # where nodes may be made
//! name = "west"
//! address = "10.9.2.1"              # on which nodes of this host listen
//! netns = "forerun-west"            # and in which network namespace
//! ```

use crate::planner::Mode;
use crate::provision::Backoff;
use node::{Error, ErrorKind, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

/// What `forerun controller --config FILE` reads.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where to take calls.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// Where the store is kept.
    #[serde(default = "default_data")]
    pub data: PathBuf,
    /// Take calls in plain text on an address that is not loopback. Anybody who reaches it commands
    /// the fleet.
    #[serde(default)]
    pub allow_plaintext: bool,
    /// The price table. Without it nothing can be bought, and nothing is.
    pub prices: Option<PathBuf>,
    /// How nodes are made; without it none are.
    pub provision: Option<ProvisionConfig>,
    /// How to plan; without it no plan is made.
    pub planning: Option<PlanningConfig>,
    /// Where nodes may be made.
    #[serde(default)]
    pub site: Vec<SiteConfig>,
}

/// How nodes are made and destroyed.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProvisionConfig {
    /// Terraform, or OpenTofu.
    pub terraform: PathBuf,
    /// A module directory; without it nodes are processes of this host.
    pub module: Option<PathBuf>,
    /// Where Terraform finds its states: a loopback address.
    pub state: SocketAddr,
    /// The most nodes at a site.
    pub nodes: usize,
    /// The most that a site's nodes may cost in an hour.
    pub hour: f64,
    /// How long a new node may take to register.
    pub register_seconds: u64,
    /// How long Terraform may take to plan, and to apply.
    pub plan_seconds: u64,
    /// How long Terraform may take to apply.
    pub apply_seconds: u64,
    /// How long to wait for a lock that somebody else holds.
    pub lock_seconds: u64,
    /// The first wait after a failure; each further one is twice as long.
    pub retry_seconds: u64,
    /// How often a step is tried.
    pub tries: u32,
    /// How often Terraform is asked whether a site is still what it made; 0 is never.
    pub drift_seconds: u64,
}

impl Default for ProvisionConfig {
    fn default() -> ProvisionConfig {
        let backoff = Backoff::default();
        let limits = crate::provision::Limits::default();
        ProvisionConfig {
            terraform: "terraform".into(),
            module: None,
            state: SocketAddr::from(([127, 0, 0, 1], 0)),
            nodes: 4,
            hour: 10.0,
            register_seconds: 300,
            plan_seconds: limits.plan.as_secs(),
            apply_seconds: limits.apply.as_secs(),
            lock_seconds: limits.lock.as_secs(),
            retry_seconds: backoff.first.as_secs(),
            tries: backoff.tries,
            drift_seconds: 3600,
        }
    }
}

/// A site where nodes may be made.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiteConfig {
    /// Its name, as in the price table.
    pub name: String,
    /// The address on which its nodes listen, when they are processes of this host.
    #[serde(default = "loopback")]
    pub address: IpAddr,
    /// The network namespace in which they run.
    pub netns: Option<String>,
    /// Where its nodes find the controller, if it is not the address on which that listens.
    pub controller: Option<String>,
    /// HOST:PORT at the site: nodes measure the round trip to it, before the site has a node. A host
    /// that refuses the connection does as well.
    pub probe: Option<String>,
    /// The round trip to it as far as is known beforehand; a larger one that is measured counts.
    #[serde(default)]
    pub latency_ms: f64,
    /// What seeding to it may take, in MiB a second.
    #[serde(default = "bandwidth")]
    pub bandwidth_mib: f64,
    /// How long a node takes there, until it has been measured.
    #[serde(default = "provision_time")]
    pub provision_seconds: u64,
}

impl SiteConfig {
    /// A site of which nothing but the name is said.
    #[must_use]
    pub fn at(name: &str) -> SiteConfig {
        SiteConfig {
            name: name.to_owned(),
            address: loopback(),
            netns: None,
            controller: None,
            probe: None,
            latency_ms: 0.0,
            bandwidth_mib: bandwidth(),
            provision_seconds: provision_time(),
        }
    }
}

fn bandwidth() -> f64 {
    100.0
}

fn provision_time() -> u64 {
    120
}

/// How to plan.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PlanningConfig {
    /// How far to go; before the policy's own word.
    pub mode: Option<Mode>,
    /// The time between two plans.
    pub period_seconds: u64,
    /// The length of a day, by which forecasts look for what comes again; shorter where recorded
    /// load is played faster than it was.
    pub day_seconds: u64,
    /// The policy's file.
    pub policy: Option<PathBuf>,
    /// The calendar's file.
    pub calendar: Option<PathBuf>,
    /// Whether volumes that were moved because of an event come back after it.
    pub return_home: bool,
    /// Whether the copy that such a volume left at home is removed after the event, where it does not come
    /// back.
    pub remove_old_copy: bool,
    /// Lists of volumes that are kept on nodes of their own, because they must not fail together.
    pub apart: Vec<Vec<String>>,
    /// What seeding may take to sites that are not configured, in MiB a second.
    pub bandwidth_mib: u64,
    /// Days of history that are kept; 30 of 10,000 VMs take a gigabyte.
    pub history_days: u32,
    /// Whoever measures the fleet beside its nodes.
    pub source: Vec<SourceConfig>,
    /// Series that come from files in place of what nodes say.
    pub series: Vec<SeriesConfig>,
}

impl Default for PlanningConfig {
    fn default() -> PlanningConfig {
        PlanningConfig {
            mode: None,
            period_seconds: 300,
            day_seconds: 86_400,
            policy: None,
            calendar: None,
            return_home: true,
            remove_old_copy: false,
            apart: Vec::new(),
            bandwidth_mib: 100,
            history_days: 30,
            source: Vec::new(),
            series: Vec::new(),
        }
    }
}

/// What a source measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Measured {
    /// The nodes' hosts: node_exporter's metrics.
    Nodes,
    /// VMs: the libvirt exporter's metrics.
    Vms,
}

/// A source of history: a Prometheus, or CSV files.
///
/// ```toml
/// [[planning.source]]
/// of = "vms"
/// prometheus = "http://127.0.0.1:9090"
/// names = { web-data = "web" }      # the VM whose disk the volume is, if not of the same name
/// ```
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// What it measures.
    pub of: Measured,
    /// The address of a Prometheus, plain HTTP.
    pub prometheus: Option<String>,
    /// Tables of machines, which whoever measures them writes on.
    #[serde(default)]
    pub csv: Vec<PathBuf>,
    /// Its names by ours: instances by node, or domains by volume.
    #[serde(default)]
    pub names: BTreeMap<String, String>,
}

impl SourceConfig {
    /// Refuse what names no source, or two.
    fn check(&self) -> Result<()> {
        if self.prometheus.is_some() == self.csv.is_empty() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Invalid,
            "planning: a source is either prometheus = \"http://HOST:PORT\" or csv = [\"FILE\", ...]",
        ))
    }
}

/// A node's series in a file, which whoever measures it writes on: the last sample is the present.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeriesConfig {
    /// Whose.
    pub node: String,
    /// `cpu` or `memory`, as a share of all that the node has.
    pub metric: String,
    /// The file, `timestamp,value` with a head.
    pub csv: PathBuf,
    /// Which of several columns.
    pub column: Option<String>,
}

fn loopback() -> IpAddr {
    IpAddr::from([127, 0, 0, 1])
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7400))
}

fn default_data() -> PathBuf {
    PathBuf::from("/var/lib/forerun/controller")
}

impl Default for Config {
    fn default() -> Config {
        Config {
            listen: default_listen(),
            data: default_data(),
            allow_plaintext: false,
            prices: None,
            provision: None,
            planning: None,
            site: Vec::new(),
        }
    }
}

impl Config {
    /// Read a TOML file.
    pub fn read(path: &Path) -> Result<Config> {
        let asked = format!("read the controller's configuration {}", path.display());
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(asked.clone(), e))?;
        toml::from_str(&text).map_err(|e| {
            Error::new(
                ErrorKind::Invalid,
                format!("{asked}: {}", e.to_string().trim_end()),
            )
        })
    }

    /// Refuse what would hand the fleet to the network, and what contradicts itself.
    pub fn check(&self) -> Result<()> {
        self.check_sites()?;
        self.check_planning()?;
        if self.listen.ip().is_loopback() || self.allow_plaintext {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Denied,
            format!(
                "listen on {}: calls are not encrypted, and whoever reaches this address commands the \
                 fleet. Listen on 127.0.0.1, or pass --allow-plaintext on a network you trust",
                self.listen
            ),
        ))
    }

    fn check_sites(&self) -> Result<()> {
        let invalid = |why: String| Err(Error::new(ErrorKind::Invalid, why));
        for (i, site) in self.site.iter().enumerate() {
            // the name becomes a directory and a key
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if site.name.is_empty() || !site.name.chars().all(plain) || site.name.starts_with('.') {
                return invalid(format!(
                    "site {:?}: use letters, digits, '-', '_' and '.' for its name",
                    site.name
                ));
            }
            if self.site[..i].iter().any(|s| s.name == site.name) {
                return invalid(format!("site {} is there twice", site.name));
            }
        }
        let bad = |s: &&SiteConfig| {
            let is_number = s.latency_ms.is_finite() && s.bandwidth_mib.is_finite();
            !is_number || s.latency_ms < 0.0 || s.bandwidth_mib <= 0.0
        };
        if let Some(site) = self.site.iter().find(bad) {
            return invalid(format!(
                "site {}: latency_ms = {} and bandwidth_mib = {} must be numbers, the bandwidth above \
                 zero",
                site.name, site.latency_ms, site.bandwidth_mib
            ));
        }
        let state = self.provision.as_ref().map(|p| p.state.ip());
        if let Some(state) = state.filter(|ip| !ip.is_loopback()) {
            return invalid(format!(
                "provision: state = \"{state}\": states hold what a fleet is made of and travel \
                 unencrypted; use a loopback address"
            ));
        }
        Ok(())
    }

    fn check_planning(&self) -> Result<()> {
        let invalid = |why: String| Err(Error::new(ErrorKind::Invalid, why));
        if let Some(p) = &self.planning {
            if p.return_home && p.remove_old_copy {
                return invalid(
                    "planning: remove_old_copy = true: volumes that come back (return_home) need the copy \
                     that they left; say return_home = false, or leave the copy"
                        .into(),
                );
            }
            if p.period_seconds == 0 || p.day_seconds < p.period_seconds {
                return invalid(format!(
                    "planning: period_seconds = {} and day_seconds = {}: a period is at least a second \
                     and not longer than a day",
                    p.period_seconds, p.day_seconds
                ));
            }
            if p.history_days == 0 {
                return invalid("planning: history_days = 0: keep at least one day".into());
            }
            for source in &p.source {
                source.check()?;
            }
            if let Some(s) = p
                .series
                .iter()
                .find(|s| !["cpu", "memory"].contains(&s.metric.as_str()))
            {
                return invalid(format!(
                    "planning: series of node {}: metric {:?} is not cpu or memory",
                    s.node, s.metric
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_off_loopback_must_be_asked_for() {
        let mut config = Config::default();
        config.check().unwrap();
        config.listen = "0.0.0.0:7400".parse().unwrap();
        let e = config.check().unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Denied);
        assert!(e.to_string().contains("--allow-plaintext"));
        config.allow_plaintext = true;
        config.check().unwrap();
    }

    #[test]
    fn sites_that_cannot_be_are_refused() {
        let refused = |text: &str, says: &str| {
            let config: Config = toml::from_str(text).unwrap();
            let e = config.check().unwrap_err();
            assert!(e.to_string().contains(says), "{e}");
        };
        refused("[[site]]\nname = \"../x\"", "letters");
        refused("[[site]]\nname = \"a\"\n[[site]]\nname = \"a\"", "twice");
        refused("[provision]\nstate = \"10.0.0.1:1\"", "loopback");
        refused("[[planning.source]]\nof = \"vms\"", "either prometheus");
    }

    #[test]
    fn a_misspelt_key_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, "lisen = \"127.0.0.1:1\"\n").unwrap();
        let e = Config::read(&path).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Invalid);
        assert!(e.to_string().contains("lisen"), "{e}");
    }
}
