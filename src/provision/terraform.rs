//! Terraform as production drives it: one working directory and one state a site.
//!
//! ```text
//! end former runs, free their lock ─► write files ─► init ─► plan -out ─► show -json ─► gate
//!        ▲                                             ▲                                  │
//!        └── killed or timed out                       └── stale plan, lock, throttling   ▼
//!                                      sweep what is tagged and in no state ◄── apply -json plan
//! ```

use super::Provisioner;
use super::backend::Backend;
use super::failure::{Backoff, Class, Failed};
use super::gate::{Allowance, Changes, ShownPlan, gate};
use super::process::{self, Ended};
use super::progress::{Progress, Stream};
use super::sweep::{self, NODE_TAG, RUN_TAG};
use super::workspace::{Module, NodeSpec, Workspace};
use crate::store::Store;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const PLAN: &str = "plan.out";
/// `plan -detailed-exitcode`: there is something to do.
const SOMETHING_TO_DO: i32 = 2;

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long to wait for a lock that somebody else holds.
    pub lock: Duration,
    /// For init, plan and show.
    pub plan: Duration,
    /// For apply.
    pub apply: Duration,
    /// Between tries, and how many.
    pub backoff: Backoff,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            lock: Duration::from_secs(60),
            plan: Duration::from_secs(300),
            apply: Duration::from_secs(1800),
            backoff: Backoff::default(),
        }
    }
}

/// Terraform for a fleet.
pub struct Terraform<S> {
    program: PathBuf,
    root: PathBuf,
    fleet: String,
    module: Module,
    limits: Limits,
    backend: Backend<S>,
    address: SocketAddr,
    password: String,
    runs: AtomicU64,
}

impl<S: Store> Terraform<S> {
    /// Run `program` in directories under `root`, with states kept by `backend`, which listens at
    /// `address` and takes `password`. `fleet` sets this controller's nodes apart from another's.
    #[must_use]
    #[expect(
        clippy::too_many_arguments,
        reason = "each is one fact, named where it is given"
    )]
    pub fn new(
        program: PathBuf,
        root: PathBuf,
        fleet: String,
        module: Module,
        limits: Limits,
        backend: Backend<S>,
        address: SocketAddr,
        password: String,
    ) -> Terraform<S> {
        Terraform {
            program,
            root,
            fleet,
            module,
            limits,
            backend,
            address,
            password,
            runs: AtomicU64::new(0),
        }
    }

    fn workspace(&self, site: &str) -> Workspace {
        Workspace::new(&self.root, site)
    }

    /// Run one Terraform command to its end. Its lock is freed afterwards, however it ended.
    async fn run(
        &self,
        site: &str,
        arguments: &[&str],
        limit: Duration,
        mut line: impl FnMut(&str) + Send,
    ) -> Result<Ended, Failed> {
        let run = self.runs.fetch_add(1, Ordering::Relaxed);
        let user = format!("forerun-{}-{run}", std::process::id());
        let url = format!("http://{}/state/{site}", self.address);
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .current_dir(&self.workspace(site).dir)
            .env("TF_IN_AUTOMATION", "1")
            .env("TF_INPUT", "0")
            .env("CHECKPOINT_DISABLE", "1")
            .env("TF_HTTP_ADDRESS", &url)
            .env("TF_HTTP_LOCK_ADDRESS", &url)
            .env("TF_HTTP_UNLOCK_ADDRESS", &url)
            .env("TF_HTTP_USERNAME", &user)
            .env("TF_HTTP_PASSWORD", &self.password)
            .env(RUN_TAG, self.tag(site));
        let (send, mut lines) = tokio::sync::mpsc::channel::<String>(64);
        let running = tokio::task::spawn_blocking(move || {
            process::run(command, limit, |l| {
                // the receiver outlives the run unless the whole future was dropped
                let _ = send.blocking_send(l.to_owned());
            })
        });
        while let Some(l) = lines.recv().await {
            line(&l);
        }
        let ended = running.await.map_err(|e| {
            Failed::new(Class::Other, format!("the thread that ran Terraform: {e}"))
        })?;
        self.backend.release(site, &user).await?;
        ended
    }

    fn tag(&self, site: &str) -> String {
        format!("{}/{site}", self.fleet)
    }

    /// A controller that was killed leaves its Terraform running. End it before another begins, and
    /// free its lock: nobody else will.
    async fn end_former_runs(&self, site: &str) -> Result<(), Failed> {
        let tag = self.tag(site);
        let former = tokio::task::spawn_blocking(move || {
            let former = sweep::tagged(RUN_TAG, &tag);
            let former: Vec<_> = former.into_iter().filter(|f| f.tag == tag).collect();
            former.iter().for_each(|f| sweep::end(f, RUN_TAG));
        });
        former
            .await
            .map_err(|e| Failed::new(Class::Other, format!("end former runs: {e}")))?;
        if let Some(holder) = self.backend.holder(site).await?
            && holder.user.starts_with("forerun-")
        {
            self.backend.release(site, &holder.user).await?;
        }
        Ok(())
    }

    /// Write the files and make the working directory ready.
    pub(super) async fn prepare(
        &self,
        site: &str,
        wanted: &BTreeMap<String, NodeSpec>,
    ) -> Result<(), Failed> {
        self.workspace(site)
            .write(&self.fleet, site, &self.module, wanted)?;
        let init = ["init", "-input=false", "-no-color", "-reconfigure"];
        let ended = self.run(site, &init, self.limits.plan, |_| ()).await?;
        match ended.code {
            Some(0) => Ok(()),
            _ => Err(Stream::default()
                .failure(&format!("terraform init for site {site}"), &ended.stderr)),
        }
    }

    /// Plan into a file, and say what the plan does.
    pub(super) async fn plan(
        &self,
        site: &str,
        report: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Changes, Failed> {
        let lock = format!("-lock-timeout={}s", self.limits.lock.as_secs());
        let out = format!("-out={PLAN}");
        let arguments = [
            "plan",
            "-json",
            "-input=false",
            "-detailed-exitcode",
            &lock,
            &out,
            "-var-file=nodes.tfvars.json",
        ];
        let mut stream = Stream::default();
        let limit = self.limits.plan + self.limits.lock;
        let ended = self
            .run(site, &arguments, limit, |l| {
                stream.line(l).into_iter().for_each(report);
            })
            .await?;
        if !matches!(ended.code, Some(0 | SOMETHING_TO_DO)) {
            return Err(stream.failure(&format!("terraform plan for site {site}"), &ended.stderr));
        }
        let mut shown = String::new();
        let ended = self
            .run(site, &["show", "-json", PLAN], self.limits.plan, |l| {
                shown.push_str(l)
            })
            .await?;
        if ended.code != Some(0) {
            return Err(Stream::default()
                .failure(&format!("terraform show for site {site}"), &ended.stderr));
        }
        let plan: ShownPlan = serde_json::from_str(&shown)
            .map_err(|e| Failed::new(Class::Other, format!("read the plan of site {site}: {e}")))?;
        Ok(plan.changes())
    }

    /// Carry out the plan in the file, and nothing else.
    pub(super) async fn apply(
        &self,
        site: &str,
        report: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<(), Failed> {
        let lock = format!("-lock-timeout={}s", self.limits.lock.as_secs());
        let arguments = ["apply", "-json", "-input=false", &lock, PLAN];
        let mut stream = Stream::default();
        let limit = self.limits.apply + self.limits.lock;
        let ended = self
            .run(site, &arguments, limit, |l| {
                stream.line(l).into_iter().for_each(report);
            })
            .await?;
        match ended.code {
            Some(0) => Ok(()),
            _ => Err(stream.failure(&format!("terraform apply for site {site}"), &ended.stderr)),
        }
    }

    /// The nodes that the state has: whole, and tainted (their create failed).
    async fn in_state(&self, site: &str) -> Result<[BTreeSet<String>; 2], Failed> {
        let Some(state) = self.backend.state(site).await? else {
            return Ok(Default::default());
        };
        let state: serde_json::Value = serde_json::from_slice(&state).map_err(|e| {
            Failed::new(Class::Other, format!("read the state of site {site}: {e}"))
        })?;
        let mut nodes: [BTreeSet<String>; 2] = Default::default();
        for instance in (state["resources"].as_array().into_iter().flatten())
            .flat_map(|r| r["instances"].as_array().into_iter().flatten())
        {
            if let Some(name) = instance["index_key"].as_str() {
                let tainted = instance["status"] == "tainted";
                nodes[usize::from(tainted)].insert(name.to_owned());
            }
        }
        Ok(nodes)
    }

    /// Kill every tagged node of the site that the state does not have, or has as a create that
    /// failed: no destroy provisioner runs for these. Nobody applies meanwhile, because an operation
    /// owns its site; and what serves is spared even if the state has lost it.
    pub(super) async fn sweep(&self, site: &str, allow: &Allowance) -> Result<Vec<String>, Failed> {
        if matches!(self.module, Module::Directory(_)) {
            return Ok(Vec::new()); // its nodes are not processes of this host
        }
        let [whole, tainted] = self.in_state(site).await?;
        let prefix = format!("{}/", self.tag(site));
        let allow = allow.clone();
        let orphans = tokio::task::spawn_blocking(move || {
            let is_orphan = |name: &str| {
                let failed = tainted.contains(name) && allow.destroy.contains(name);
                !allow.keep.contains(name)
                    && (!(whole.contains(name) || tainted.contains(name)) || failed)
            };
            let all = sweep::tagged(NODE_TAG, &prefix).into_iter();
            let orphans: Vec<_> = all.filter(|f| is_orphan(&f.tag[prefix.len()..])).collect();
            orphans.iter().for_each(|f| sweep::end(f, NODE_TAG));
            let names = orphans
                .into_iter()
                .map(|f| f.tag[prefix.len()..].to_owned());
            names.collect()
        });
        orphans
            .await
            .map_err(|e| Failed::new(Class::Other, format!("sweep site {site}: {e}")))
    }

    async fn once(
        &self,
        site: &str,
        wanted: &BTreeMap<String, NodeSpec>,
        allow: &Allowance,
        report: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Changes, Failed> {
        self.end_former_runs(site).await?;
        self.prepare(site, wanted).await?;
        self.sweep(site, allow).await?;
        let changes = self.plan(site, report).await?;
        gate(site, &changes, wanted, allow)?;
        if changes.any {
            let applied = self.apply(site, report).await;
            // what a failed create left behind is in no state, or tainted there
            self.sweep(site, allow).await?;
            applied?;
        }
        Ok(changes)
    }

    /// The directory that a site's files are in.
    #[must_use]
    pub fn site_directory(&self, site: &str) -> PathBuf {
        self.workspace(site).dir
    }

    /// The program that is run.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }
}

impl<S: Store> Provisioner for Terraform<S> {
    async fn converge(
        &self,
        site: &str,
        wanted: &BTreeMap<String, NodeSpec>,
        allow: &Allowance,
        report: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Changes, Failed> {
        let mut failures = 0;
        loop {
            let mut failed = match self.once(site, wanted, allow, report).await {
                Ok(changes) => return Ok(changes),
                Err(failed) => failed,
            };
            if failed.class == Class::Locked
                && let Some(holder) = self.backend.holder(site).await?
            {
                // Terraform shows its own words here, not the holder's
                failed.text = format!("{} Held by {}: {}", failed.text, holder.user, holder.words);
            }
            failures += 1;
            let wait = self.limits.backoff.after(failures);
            let (true, Some(wait)) = (failed.class.may_pass(), wait) else {
                return Err(failed);
            };
            report(Progress::Retrying {
                text: failed.to_string(),
            });
            tokio::time::sleep(wait).await;
        }
    }

    async fn drifted(&self, site: &str) -> Result<bool, Failed> {
        let lock = format!("-lock-timeout={}s", self.limits.lock.as_secs());
        let arguments = [
            "plan",
            "-refresh-only",
            "-detailed-exitcode",
            "-json",
            "-input=false",
            &lock,
            "-var-file=nodes.tfvars.json",
        ];
        let mut stream = Stream::default();
        let limit = self.limits.plan + self.limits.lock;
        let ended = self
            .run(site, &arguments, limit, |l| {
                stream.line(l);
            })
            .await?;
        match ended.code {
            Some(0) => Ok(false),
            Some(SOMETHING_TO_DO) => Ok(true),
            _ => Err(stream.failure(
                &format!("terraform plan -refresh-only for site {site}"),
                &ended.stderr,
            )),
        }
    }
}

#[cfg(test)]
#[path = "terraform_tests.rs"]
mod tests;
