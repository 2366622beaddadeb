//! A fleet of real processes that can be killed one by one: a controller, node a that owns a volume,
//! node b that replicates it.
//!
//! ```text
//!   a (127.x.y.1) ══► link (127.x.y.4) ══► b (127.x.y.2)
//!                 ◄══ link (127.x.y.3) ◄══
//! ```
//!
//! Every fleet has loopback addresses of its own, so that a restarted process finds its ports free.
//! Each node is advertised where a [`link`] listens: whatever others send to it passes there, is counted,
//! and can be held back, spoiled, cut or stalled.
#![allow(
    dead_code,
    reason = "each test file is a crate of its own and uses a part of this"
)]

#[path = "../daemon/mod.rs"]
mod daemon;
pub mod link;
pub mod load;
pub mod owners;
pub mod scene;

use daemon::Daemon;
use link::Link;
use nix::sys::signal::{Signal, kill};
use proto::v1::node_client::NodeClient;
use proto::v1::{ReplicaReport, StatusRequest, VolumeReport, VolumeRole};
use serde_json::Value;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tonic::transport::{Channel, Endpoint};

/// Longer than anything here takes on a busy machine; a hang fails by it.
pub const PATIENCE: Duration = Duration::from_secs(45);
/// Of each log, what a failed test shows.
const LOG_LINES: usize = 60;
/// The volume's name.
pub const VOLUME: &str = "v";

/// All ways to one node.
pub struct Ways {
    pub replication: Link,
    /// What a former owner forwards.
    pub nbd: Link,
    /// The controller's calls.
    pub control: Link,
}

impl Ways {
    fn open(ip: Ipv4Addr, node: &Daemon) -> Ways {
        Ways {
            replication: Link::of_frames(ip, node.said("replication")),
            nbd: Link::of_bytes(ip, node.said("nbd")),
            control: Link::of_bytes(ip, node.said("listening")),
        }
    }

    /// The ways that another node uses.
    pub fn of_nodes(&self) -> [&Link; 2] {
        [&self.replication, &self.nbd]
    }
}

/// A process of the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Controller,
    Source,
    Target,
}

/// A command of the command line that runs beside the test.
pub struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Whether it succeeded, once it has ended.
    pub fn ended(&mut self) -> Option<bool> {
        Some(self.child.try_wait().unwrap()?.success())
    }

    /// Waits for its end, which must be a success.
    pub fn succeeds(mut self) {
        assert!(self.end(), "{}", self.said());
    }

    /// Waits for its end; whether it was a success.
    pub fn waits(mut self) -> bool {
        self.end()
    }

    fn end(&mut self) -> bool {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(success) = self.ended() {
                return success;
            }
            let late = Instant::now() >= until;
            assert!(!late, "the command does not end: {}", self.said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Everything that it printed.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }
}

/// The processes.
pub struct Fleet {
    dir: tempfile::TempDir,
    controller: Option<Daemon>,
    nodes: [Option<Daemon>; 2],
    controller_at: SocketAddr,
    node_at: [SocketAddr; 2],
    replication: SocketAddr,
    /// To a and to b.
    pub ways: [Ways; 2],
    commands: AtomicU64,
    runtime: tokio::runtime::Runtime,
}

impl Fleet {
    pub fn start() -> Fleet {
        Fleet::in_folder(tempfile::tempdir().unwrap())
    }

    /// Each node's data is in the folder of its name.
    pub fn in_folder(dir: tempfile::TempDir) -> Fleet {
        let ips = addresses();
        let controller = controller(dir.path(), SocketAddr::new(IpAddr::V4(ips[0]), 0));
        let controller_at = controller.said("listening");
        let [a, b] = [0, 1].map(|i| {
            write_config(dir.path(), i, &ips, controller_at, [0; 3]);
            node(dir.path(), i, &[])
        });
        for (i, n) in [&a, &b].into_iter().enumerate() {
            let ports = ["listening", "replication", "nbd"].map(|f| n.said(f).port());
            write_config(dir.path(), i, &ips, controller_at, ports);
        }
        let fleet = Fleet {
            ways: [Ways::open(ips[2], &a), Ways::open(ips[3], &b)],
            node_at: [a.said("listening"), b.said("listening")],
            replication: b.said("replication"),
            controller: Some(controller),
            nodes: [Some(a), Some(b)],
            controller_at,
            dir,
            commands: AtomicU64::new(0),
            runtime: runtime(),
        };
        fleet.until("both nodes are alive", || {
            let said = fleet.run(&["node-list"]);
            let nodes = said.as_array()?.iter().filter(|n| n["alive"] == true);
            (nodes.count() == 2).then_some(())
        });
        fleet
    }

    /// SIGKILL.
    pub fn kill(&mut self, who: Who) {
        match who {
            Who::Controller => self.controller = None,
            Who::Source => self.nodes[0] = None,
            Who::Target => self.nodes[1] = None,
        }
    }

    /// SIGTERM, and the process must end well.
    pub fn terminate(&mut self, who: Who) {
        let daemon = match who {
            Who::Controller => &mut self.controller,
            Who::Source => &mut self.nodes[0],
            Who::Target => &mut self.nodes[1],
        };
        let status = daemon.take().unwrap().terminate(PATIENCE);
        assert!(status.success(), "{who:?} ended with {status}");
    }

    /// On the same files and addresses as before.
    pub fn restart(&mut self, who: Who) {
        self.restart_with(who, &[]);
    }

    /// The same, with further arguments.
    pub fn restart_with(&mut self, who: Who, more: &[&str]) {
        let dir = self.dir.path();
        match who {
            Who::Controller => self.controller = Some(controller(dir, self.controller_at)),
            Who::Source => self.nodes[0] = Some(node(dir, 0, more)),
            Who::Target => self.nodes[1] = Some(node(dir, 1, more)),
        }
    }

    /// Both nodes, which were killed, start at once: b a moment after a has begun.
    pub fn restart_both(&mut self) {
        let dir = self.dir.path();
        let start = |i: u32| {
            std::thread::sleep(Duration::from_millis(300) * i);
            Some(node(dir, i as usize, &[]))
        };
        self.nodes = std::thread::scope(|s| {
            let starting = [0, 1].map(|i| s.spawn(move || start(i)));
            starting.map(|t| t.join().unwrap())
        });
    }

    /// SIGTERM to the nodes, which must end well.
    pub fn stop_nodes(&mut self) {
        for node in &mut self.nodes {
            if let Some(status) = node.take().map(|n| n.terminate(PATIENCE)) {
                assert!(status.success(), "a node ended with {status}");
            }
        }
    }

    /// Stops a node, has its data directory be where `mount` mounts something, and starts it with the same
    /// files there. None if nothing could be mounted.
    pub fn move_home<M>(&mut self, who: Who, mount: impl FnOnce(&Path) -> Option<M>) -> Option<M> {
        self.terminate(who);
        let home = self.dir.path().join(name(usize::from(who == Who::Target)));
        let before = home.with_extension("before");
        std::fs::rename(&home, &before).unwrap();
        std::fs::create_dir(&home).unwrap();
        let mounted = mount(&home)?;
        let copied = Command::new("cp")
            .args(["-a", "--sparse=always"])
            .arg(before.join("."))
            .arg(&home)
            .status();
        assert!(copied.unwrap().success(), "copy the node's files");
        self.restart(who);
        Some(mounted)
    }

    /// The directory of a node's volume.
    pub fn volume(&self, node: &str, volume: &str) -> PathBuf {
        self.dir.path().join(node).join("volumes").join(volume)
    }

    pub fn signal(&self, who: Who, signal: Signal) {
        kill(self.daemon(who).unwrap().pid(), signal).unwrap();
    }

    /// `None` while it is dead.
    pub fn pid(&self, who: Who) -> Option<u32> {
        Some(self.daemon(who)?.pid().as_raw().cast_unsigned())
    }

    fn daemon(&self, who: Who) -> Option<&Daemon> {
        match who {
            Who::Controller => self.controller.as_ref(),
            Who::Source => self.nodes[0].as_ref(),
            Who::Target => self.nodes[1].as_ref(),
        }
    }

    /// What node b receives.
    pub fn link(&self) -> &Link {
        &self.ways[1].replication
    }

    /// Where a node serves NBD to programs on its host.
    pub fn nbd_socket(&self, node: &str) -> PathBuf {
        self.dir.path().join(node).join("nbd.sock")
    }

    /// The unix socket of a node's volume.
    pub fn uri(&self, node: &str, volume: &str) -> node::client::Uri {
        let socket = self.nbd_socket(node);
        format!("nbd+unix:///{volume}?socket={}", socket.display())
            .parse()
            .unwrap()
    }

    /// Keeps a copy of the volume on a node, an increment behind.
    pub fn replicate(&self, to: &str) {
        let add = ["replica", "add", VOLUME, "--to", to];
        let how = ["--consistency", "bounded=500ms"];
        self.run(&[&add[..], &how].concat());
    }

    /// A command that must succeed: the last line of its JSON.
    pub fn run(&self, args: &[&str]) -> Value {
        self.try_run(args).unwrap()
    }

    /// A command: the last line of its JSON, or what it said when it failed.
    pub fn try_run(&self, args: &[&str]) -> Result<Value, String> {
        let out = self.output(args);
        let said = String::from_utf8_lossy(&out.stdout);
        if !out.status.success() {
            let complaint = String::from_utf8_lossy(&out.stderr);
            return Err(format!("{args:?}: {said} {complaint}"));
        }
        let value = serde_json::from_str(said.trim())
            .or_else(|_| serde_json::from_str(said.lines().last().unwrap_or_default()));
        Ok(value.unwrap())
    }

    /// A command that must fail: what it says.
    pub fn refused(&self, args: &[&str]) -> String {
        let out = self.output(args);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(1), "{args:?}: {said}");
        said
    }

    /// A command, whatever comes of it.
    pub fn output(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    pub fn begin(&self, args: &[&str]) -> Running {
        let n = self.commands.fetch_add(1, Ordering::Relaxed);
        let log = self.dir.path().join(format!("command-{n}.log"));
        let file = File::create(&log).unwrap();
        let mut command = self.command(args);
        command
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .stdin(Stdio::null());
        let child = command.spawn().unwrap();
        Running { child, log }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = forerun(&["--controller", &self.controller_at.to_string()]);
        command
            .args(args)
            .args(["--output", "json"])
            .env_remove("RUST_LOG");
        command
    }

    /// gRPC of the two nodes, without the links between.
    pub fn node_addresses(&self) -> [SocketAddr; 2] {
        self.node_at
    }

    /// Where node b takes replication, without the gate between.
    pub fn replication(&self) -> SocketAddr {
        self.replication
    }

    /// What a node reports of a volume; `None` if the node does not answer.
    pub fn report(&self, who: Who, volume: &str) -> Option<VolumeReport> {
        let at = self.node_at[usize::from(who == Who::Target)];
        self.runtime.block_on(async {
            let reports = reports(&mut client(at)).await?;
            reports.into_iter().find(|v| v.name == volume)
        })
    }

    pub fn role(&self, who: Who) -> Option<VolumeRole> {
        self.report(who, VOLUME).map(|v| v.role())
    }

    /// The volume's replica as its source sees it.
    pub fn replica(&self) -> Option<ReplicaReport> {
        self.report(Who::Source, VOLUME)?
            .replicas
            .into_iter()
            .next()
    }

    /// Waits until `found` finds something.
    pub fn until<T>(&self, what: &str, mut found: impl FnMut() -> Option<T>) -> T {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = found() {
                return found;
            }
            assert!(Instant::now() < until, "it does not happen that {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let commands = self.commands.load(Ordering::Relaxed);
            let last = format!("command-{}", commands.saturating_sub(1));
            for name in ["controller", "a", "b", &last] {
                let log = self.dir.path().join(format!("{name}.log"));
                let said = std::fs::read_to_string(log).unwrap_or_default();
                let lines: Vec<_> = said.lines().collect();
                let shown = &lines[lines.len().saturating_sub(LOG_LINES)..];
                eprintln!("--- {name}\n{}", shown.join("\n"));
            }
        }
    }
}

/// Addresses that no other fleet on this machine has: of the process, and counted within it.
fn addresses() -> [Ipv4Addr; 4] {
    static FLEETS: AtomicU8 = AtomicU8::new(0);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let first = FLEETS.fetch_add(4, Ordering::Relaxed) + 1;
    [0, 1, 2, 3].map(|i| Ipv4Addr::new(127, high % 100 + 100, low, first + i))
}

fn forerun(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forerun"));
    command.args(args);
    command
}

fn controller(dir: &Path, at: SocketAddr) -> Daemon {
    let data = dir.join("controller");
    let args = ["controller", "--listen", &at.to_string(), "--data"];
    let mut command = forerun(&args);
    command.arg(data);
    Daemon::start(command, &dir.join("controller.log"))
}

fn name(index: usize) -> &'static str {
    ["a", "b"][index]
}

fn node(dir: &Path, index: usize, more: &[&str]) -> Daemon {
    let config = dir.join(format!("{}.toml", name(index)));
    let log = dir.join(format!("{}.log", name(index)));
    let args = ["node", "--config", config.to_str().unwrap()];
    Daemon::start(forerun(&[&args[..], more].concat()), &log)
}

fn write_config(
    dir: &Path,
    index: usize,
    ips: &[Ipv4Addr; 4],
    controller: SocketAddr,
    ports: [u16; 3],
) {
    let name = name(index);
    let [listen, replication, nbd] = ports.map(|p| format!("{}:{p}", ips[index]));
    let advertise = ips[2 + index];
    let text = format!(
        "name = {name:?}\ndata = {:?}\ncontroller = \"{controller}\"\nlisten = {listen:?}\n\
         replication = {replication:?}\nnbd = {nbd:?}\nadvertise = \"{advertise}\"\n",
        dir.join(name)
    );
    std::fs::write(dir.join(format!("{name}.toml")), text).unwrap();
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

pub fn client(at: SocketAddr) -> NodeClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{at}"))
        .unwrap()
        .timeout(Duration::from_secs(1));
    NodeClient::new(endpoint.connect_lazy())
}

pub async fn reports(client: &mut NodeClient<Channel>) -> Option<Vec<VolumeReport>> {
    let answer = client.status(StatusRequest {}).await.ok()?;
    Some(answer.into_inner().volumes)
}
