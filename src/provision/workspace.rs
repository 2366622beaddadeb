//! The files of one site's Terraform working directory, all generated: `main.tf.json`,
//! `nodes.tfvars.json`, and the scripts of the built-in module.
//!
//! Whatever describes a node is in `triggers_replace`. Were it anywhere else, a change of it would
//! be an in-place change, and no provisioner runs for these: the record would say one thing and the
//! node would be another.

use node::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const START: &str = include_str!("local/start.sh");
const STOP: &str = include_str!("local/stop.sh");

/// A node that shall exist. Nothing in it is secret: it stands in plans and states.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeSpec {
    /// The shape, as in the price table.
    pub shape: String,
    /// What it costs in an hour.
    pub hour: f64,
    /// The node's configuration file, which has its token.
    pub config: PathBuf,
}

/// What a site's nodes are made by.
#[derive(Clone, Debug)]
pub enum Module {
    /// Processes on this host, each perhaps in a network namespace. Needs no download.
    Local {
        /// The `forerun` binary.
        binary: PathBuf,
        /// The network namespaces of the sites that have one.
        netns: BTreeMap<String, String>,
    },
    /// A Terraform module on disk that takes `fleet`, `site` and `nodes` (a map from name to
    /// `shape` and `config`) and makes one node for each with `for_each` over `nodes`.
    Directory(PathBuf),
}

/// What is kept of a node of the built-in module: configuration, log and data.
fn node_directory(site: &Path, node: &str) -> PathBuf {
    site.join("nodes").join(node)
}

impl Module {
    /// Where a node's configuration is written, and for the built-in module all else of it, with
    /// `root` as the directory of all sites.
    #[must_use]
    pub fn node_directory(root: &Path, site: &str, node: &str) -> PathBuf {
        node_directory(&root.join(site), node)
    }
}

/// One site's working directory.
pub(super) struct Workspace {
    pub(super) dir: PathBuf,
}

impl Workspace {
    pub(super) fn new(root: &Path, site: &str) -> Workspace {
        Workspace {
            dir: root.join(site),
        }
    }

    /// Write the files. Each is replaced as a whole, so a crash leaves the old or the new one.
    pub(super) fn write(
        &self,
        fleet: &str,
        site: &str,
        module: &Module,
        nodes: &BTreeMap<String, NodeSpec>,
    ) -> Result<()> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .map_err(|e| Error::io(format!("make {}", self.dir.display()), e))?;
        let (main, vars) = match module {
            Module::Local { binary, netns } => {
                self.put("start.sh", START.as_bytes(), 0o700)?;
                self.put("stop.sh", STOP.as_bytes(), 0o700)?;
                let vars = nodes.iter().map(|(name, spec)| {
                    let node = json!({
                        "shape": spec.shape,
                        "config": spec.config,
                        "tag": format!("{fleet}/{site}/{name}"),
                        "dir": node_directory(&self.dir, name),
                        "binary": binary,
                        "netns": netns.get(site).map_or("", String::as_str),
                        "start": self.dir.join("start.sh"),
                        "stop": self.dir.join("stop.sh"),
                    });
                    (name.clone(), node)
                });
                (local(), vars.collect::<serde_json::Map<_, _>>())
            }
            Module::Directory(source) => {
                let vars = nodes.iter().map(|(name, spec)| {
                    (
                        name.clone(),
                        json!({ "shape": spec.shape, "config": spec.config }),
                    )
                });
                (directory(source, fleet, site), vars.collect())
            }
        };
        self.put("main.tf.json", pretty(&main).as_bytes(), 0o600)?;
        let vars = json!({ "nodes": vars });
        self.put("nodes.tfvars.json", pretty(&vars).as_bytes(), 0o600)
    }

    fn put(&self, name: &str, bytes: &[u8], mode: u32) -> Result<()> {
        let path = self.dir.join(name);
        let fresh = self.dir.join(format!(".{name}.new"));
        let write = || -> std::io::Result<()> {
            let mut file = std::fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(mode)
                .open(&fresh)?;
            std::io::Write::write_all(&mut file, bytes)?;
            drop(file); // a script that is open for writing cannot be run
            std::fs::rename(&fresh, &path)
        };
        write().map_err(|e| Error::io(format!("write {}", path.display()), e))
    }
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// The generated configuration, with the `http` back end; its address comes by environment.
fn terraform() -> Value {
    json!({ "required_version": ">= 1.8", "backend": { "http": {} } })
}

fn local() -> Value {
    let environment = |of: &str| {
        json!({
            "FORERUN_TAG": format!("${{{of}.tag}}"),
            "FORERUN_DIR": format!("${{{of}.dir}}"),
            "FORERUN_BINARY": format!("${{{of}.binary}}"),
            "FORERUN_CONFIG": format!("${{{of}.config}}"),
            "FORERUN_NETNS": format!("${{{of}.netns}}"),
            "FORERUN_START": format!("${{{of}.start}}"),
            "FORERUN_STOP": format!("${{{of}.stop}}"),
        })
    };
    json!({
        "terraform": terraform(),
        "variable": { "nodes": { "type":
            "map(object({shape=string,config=string,tag=string,dir=string,binary=string,netns=string,start=string,stop=string}))" } },
        "resource": { "terraform_data": { "node": {
            "for_each": "${var.nodes}",
            "input": "${each.value}",
            "triggers_replace": "${each.value}",
            "provisioner": [
                { "local-exec": {
                    "command": "exec \"$FORERUN_START\"",
                    "environment": environment("self.input") } },
                { "local-exec": {
                    "when": "destroy",
                    "command": "exec \"$FORERUN_STOP\"",
                    "environment": environment("self.input") } },
            ],
        } } },
    })
}

fn directory(source: &Path, fleet: &str, site: &str) -> Value {
    json!({
        "terraform": terraform(),
        "variable": { "nodes": { "type": "map(object({shape=string,config=string}))" } },
        "module": { "site": {
            "source": source,
            "fleet": fleet,
            "site": site,
            "nodes": "${var.nodes}",
        } },
    })
}
