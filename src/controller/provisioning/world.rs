//! What the fleet does for a node's life. Copies and moves are the fleet's own operations, with ids
//! made from the life's operation: after a crash they are found again and not begun twice.

use super::super::config::{Config, SiteConfig};
use super::super::places;
use super::super::records::{forget_left, forget_node, put_node};
use super::super::{Controller, Inner, Nodes};
use super::show::{self, Latest};
use crate::fleet::{Status, Volume};
use crate::planner::{Ask, Bytes, Limits, Policy, Reservations, choose};
use crate::provision::{NodeRecord, Operation, Progress, World};
use crate::store::{Store, Transaction};
use node::{Error, ErrorKind, NodeName, Result, VolumeName};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Weak;

/// Where a node that has a host of its own keeps its volumes.
const OWN_HOST_DATA: &str = "/var/lib/forerun/node";

/// The fleet, as the lives of its nodes see it.
pub(in crate::controller) struct Site<S, N> {
    // the controller owns this, so this must not own the controller
    controller: Weak<Inner<S, N>>,
    sites: Vec<SiteConfig>,
    listening: SocketAddr,
    /// Nodes are processes of this host, with their data beside their configuration.
    is_local: bool,
    latest: Latest,
}

impl<S: Store, N: Nodes> Site<S, N> {
    pub(super) fn new(
        controller: &Controller<S, N>,
        config: &Config,
        listening: SocketAddr,
        latest: Latest,
    ) -> Site<S, N> {
        let module = config.provision.as_ref().and_then(|p| p.module.as_ref());
        Site {
            controller: std::sync::Arc::downgrade(&controller.inner),
            sites: config.site.clone(),
            listening,
            is_local: module.is_none(),
            latest,
        }
    }

    fn controller(&self) -> Result<Controller<S, N>> {
        let inner = self.controller.upgrade();
        inner
            .map(|inner| Controller { inner })
            .ok_or_else(|| Error::new(ErrorKind::Cancelled, "the controller is stopping"))
    }

    fn configuration(&self, node: &NodeRecord, token: &str) -> Result<String> {
        let site = self.sites.iter().find(|s| s.name == node.site);
        let site = site.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!(
                    "configure node {}: the controller's configuration has no site {} any more",
                    node.name, node.site
                ),
            )
        })?;
        let controller = match &site.controller {
            Some(at) => at.clone(),
            None => self.listening.to_string(),
        };
        let address = site.address;
        let text = |s: &str| format!("{s:?}");
        let mut lines = vec![
            format!("name = {}", text(&node.name)),
            format!("site = {}", text(&node.site)),
            format!("controller = {}", text(&controller)),
            format!("token = {}", text(token)),
            format!("allow_plaintext = {}", !address.is_loopback()),
        ];
        if self.is_local {
            // many nodes share this host: the kernel chooses their ports
            let data = node.spec.config.with_file_name("data");
            lines.push(format!("data = {:?}", data.display().to_string()));
            for key in ["listen", "replication", "nbd"] {
                lines.push(format!("{key} = \"{}\"", SocketAddr::new(address, 0)));
            }
        } else {
            lines.push(format!("data = {}", text(OWN_HOST_DATA)));
        }
        Ok(lines.join("\n") + "\n")
    }

    async fn volume(&self, name: &str) -> Result<Option<Volume>> {
        let name: VolumeName = name.parse()?;
        let found = self.controller()?.inner.records.volume(&name).await?;
        Ok(found.map(|r| r.record))
    }

    /// Another node for a volume whose owner goes. Volumes that are kept apart do not meet there, unless somebody
    /// said that they may.
    async fn refuge(&self, v: &Volume, operation: &Operation) -> Result<NodeName> {
        let leaving = operation.leaving();
        let anywhere = Ask {
            volume: v.name.to_string(),
            bytes: Bytes(v.size_bytes),
            avoid: vec![leaving.to_owned()],
            ..Ask::default()
        };
        if operation.ignore_apart {
            return self.place(v, &anywhere, leaving).await;
        }
        let controller = self.controller()?;
        let volumes = controller.inner.records.volumes().await?;
        let mut apart = [anywhere.clone()];
        controller.keep_apart(&mut apart, &controller.holders(&volumes).await?);
        let [apart] = apart;
        match (self.place(v, &apart, leaving).await, apart.group) {
            (Err(e), Some(list)) if self.place(v, &anywhere, leaving).await.is_ok() => {
                Err(Error::new(
                    e.kind(),
                    format!(
                        "{}. Elsewhere it would meet one that it is kept apart from ({list}). Where that may be: \
                         forerun provision retire {leaving} --ignore-apart",
                        e.context()
                    ),
                ))
            }
            (found, _) => found,
        }
    }

    /// A node that has a copy of the volume, else the best that has room.
    async fn place(&self, v: &Volume, ask: &Ask, leaving: &str) -> Result<NodeName> {
        let controller = self.controller()?;
        let views = controller.node_views().await?;
        let usable = |n: &NodeName| {
            let view = views.iter().find(|w| w.node.name == *n);
            let is_there = view.is_some_and(|w| w.alive && !w.node.draining);
            is_there && !ask.avoid.iter().any(|a| a == n.as_str())
        };
        if let Some(r) = v.replicas.iter().find(|r| usable(&r.node)) {
            return Ok(r.node.clone());
        }
        let places = places::of(&controller, &[]).await?;
        // a node that goes must be emptied: a busy or far refuge is better than none
        let limits = Limits {
            latency_ms: f64::INFINITY,
            utilisation: f64::INFINITY,
            ..Policy::default().limits()
        };
        match choose(ask, &places, &limits, &mut Reservations::default()) {
            Ok(choice) => choice.node.parse(),
            Err(why) => {
                let why: Vec<String> = (why.iter())
                    .map(|r| format!("{} {}", r.node, r.why))
                    .collect();
                Err(Error::new(
                    ErrorKind::NoSpace,
                    format!(
                        "empty node {leaving}: no other node can take volume {}: {}",
                        v.name,
                        why.join("; ")
                    ),
                ))
            }
        }
    }

    async fn mark_draining(&self, node: &NodeName) -> Result<()> {
        let controller = self.controller()?;
        let Some(mut known) = controller.inner.records.node(node).await? else {
            return Ok(());
        };
        if !known.draining {
            known.draining = true;
            let mut t = Transaction::default();
            put_node(&mut t, &known)?;
            controller.commit(t, Vec::new()).await?;
        }
        Ok(())
    }

    /// Take one volume off the node that goes. True when nothing of it is left there.
    async fn leave(&self, v: &Volume, node: &NodeName, operation: &Operation) -> Result<bool> {
        let controller = self.controller()?;
        if v.owner == *node {
            let to = self.refuge(v, operation).await?;
            if controller.have_copy(v, &to, 0).await? {
                controller.move_to(v, &to).await?;
            }
            return Ok(false);
        }
        if controller.passes_on(v, node) && v.is_left_on(node) {
            let text = format!("guests of {} still come by {node}", v.name);
            self.latest.say(node.as_str(), text);
            return Ok(false);
        }
        controller.drop_copy(v, node).await
    }
}

impl<S: Store, N: Nodes> World for Site<S, N> {
    async fn configure(&self, node: &NodeRecord, token: &str) -> Result<()> {
        let path = &node.spec.config;
        let text = self.configuration(node, token)?;
        let fresh = path.with_extension("new");
        let write = || -> std::io::Result<()> {
            if let Some(directory) = path.parent() {
                std::fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(directory)?;
            }
            // it holds the token: nobody else may read it
            let mut file = std::fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&fresh)?;
            std::io::Write::write_all(&mut file, text.as_bytes())?;
            std::fs::rename(&fresh, path)
        };
        write().map_err(|e| Error::io(format!("write {}", path.display()), e))
    }

    async fn seed(&self, operation: &Operation) -> Result<bool> {
        let to: NodeName = operation.node.parse()?;
        let mut all = true;
        for name in &operation.volumes {
            // a volume that was deleted meanwhile needs no copy
            if let Some(v) = self.volume(name).await? {
                all &=
                    v.status == Status::Ready && self.controller()?.have_copy(&v, &to, 0).await?;
            }
        }
        Ok(all)
    }

    async fn cut_over(&self, operation: &Operation) -> Result<bool> {
        let to: NodeName = operation.node.parse()?;
        let old = match &operation.kind {
            crate::provision::Kind::Resize { old } => old.as_str(),
            _ => "",
        };
        let mut all = true;
        for name in &operation.volumes {
            let Some(v) = self.volume(name).await? else {
                continue;
            };
            // what the old node merely keeps a copy of has its owner elsewhere, and keeps it
            if v.owner.as_str() != old {
                continue;
            }
            all = false;
            let controller = self.controller()?;
            if controller.is_consistent(&v, &to) {
                controller.move_to(&v, &to).await?;
            }
        }
        Ok(all)
    }

    async fn drain(&self, operation: &Operation) -> Result<bool> {
        let Ok(node) = operation.leaving().parse::<NodeName>() else {
            return Ok(true);
        };
        self.mark_draining(&node).await?;
        let mut all = true;
        let mut stuck = None;
        for v in self.controller()?.inner.records.volumes().await? {
            // one that finds no place keeps no other from leaving
            match self.leave(&v, &node, operation).await {
                Ok(gone) => all &= gone,
                Err(e) => stuck = stuck.or(Some(e)),
            }
        }
        stuck.map_or(Ok(all), Err)
    }

    async fn is_empty(&self, node: &str) -> Result<bool> {
        let all = self.controller()?.inner.records.volumes().await?;
        Ok(!all.iter().any(|v| v.owner.as_str() == node))
    }

    async fn forget(&self, node: &NodeRecord) -> Result<()> {
        if let Ok(name) = node.name.parse::<NodeName>() {
            let controller = self.controller()?;
            let mut t = Transaction::default();
            forget_node(&mut t, &name);
            for left in controller.inner.records.left().await? {
                if left.node == name {
                    forget_left(&mut t, &left);
                }
            }
            controller.commit(t, Vec::new()).await?;
            controller.inner.presence.forget(&name);
        }
        let directory: Option<PathBuf> = node.spec.config.parent().map(Into::into);
        match directory.map(std::fs::remove_dir_all) {
            Some(Err(e)) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(
                format!("remove what node {} left on this host", node.name),
                e,
            )),
            _ => Ok(()),
        }
    }

    fn report(&self, operation: &Operation, progress: Progress) {
        let text = show::words(&progress);
        tracing::info!(id = %operation.id, site = %operation.site, "{text}");
        self.latest.say(&operation.id, text);
    }
}
