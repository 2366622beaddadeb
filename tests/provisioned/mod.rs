//! A controller that provisions at site west, node a with a volume, and what can be seen of both
//! from outside: the command line, /proc, the directory, the store.

#[path = "../daemon/mod.rs"]
mod daemon;

use daemon::Daemon;
use forerun::store::{Embedded, Store};
use serde_json::Value;
use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longer than anything here takes on a busy machine; a hang fails by it.
const PATIENCE: Duration = Duration::from_secs(120);
/// The address of nodes in the namespace of site west.
pub const WEST: &str = "10.77.0.2";
const CONTROL: &str = "10.77.0.1";

const PRICES: &str = r#"
version = "test"
currency = "EUR"
[sites.west]
storage_gib_month = 0.05
egress_gib = 0.02
shapes = [
  { name = "small", cpus = 256, memory_gib = 4096, storage_gib = 100, hour = 0.1 },
  { name = "large", cpus = 256, memory_gib = 8192, storage_gib = 200, hour = 0.2 },
]
"#;

/// A command that runs beside the test; ended when it is dropped.
pub struct Asked(Child);

impl Drop for Asked {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it may have ended
        self.0.wait().unwrap();
    }
}

/// Two namespaces joined by a cable: the controller's and site west's.
pub struct Namespaces {
    pub control: String,
    pub west: String,
}

fn ip(args: &[&str]) -> bool {
    let done = Command::new("ip").args(args).stderr(Stdio::null()).status();
    done.is_ok_and(|s| s.success())
}

impl Namespaces {
    /// None, and a word why, where namespaces cannot be made.
    pub fn make() -> Option<Namespaces> {
        let id = std::process::id();
        let net = Namespaces {
            control: format!("fr-c-{id}"),
            west: format!("fr-w-{id}"),
        };
        if !ip(&["netns", "add", &net.control]) {
            eprintln!("skipped: network namespaces need root and iproute2");
            return None;
        }
        let (c, w) = (net.control.as_str(), net.west.as_str());
        let (here, there) = (format!("{CONTROL}/24"), format!("{WEST}/24"));
        for args in [
            &["netns", "add", w][..],
            &[
                "-n", c, "link", "add", "west", "type", "veth", "peer", "name", "home", "netns", w,
            ],
            &["-n", c, "addr", "add", &here, "dev", "west"],
            &["-n", w, "addr", "add", &there, "dev", "home"],
            &["-n", c, "link", "set", "lo", "up"],
            &["-n", w, "link", "set", "lo", "up"],
            &["-n", c, "link", "set", "west", "up"],
            &["-n", w, "link", "set", "home", "up"],
        ] {
            assert!(ip(args), "ip {args:?}");
        }
        Some(net)
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in [&self.control, &self.west] {
            let _ = ip(&["netns", "del", name]);
        }
    }
}

/// The fleet.
pub struct Rig {
    dir: tempfile::TempDir,
    /// The namespace of everything but the nodes that are made.
    inside: Option<String>,
    controller: Option<Daemon>,
    controller_at: SocketAddr,
    _a: Option<Daemon>,
}

impl Rig {
    /// With more lines for the [provision] table. None where there is no Terraform.
    pub fn start(provision: &[&str]) -> Option<Rig> {
        Rig::with("127.0.0.1", None, "", provision, |_| String::new())
    }

    /// That plans every second, by this policy, of node a whose load is in `a.csv`: calm to begin
    /// with.
    pub fn planning(mode: &str, policy: &str) -> Option<Rig> {
        Rig::planning_with(mode, policy, &[])
    }

    /// The same with more lines for the [provision] table.
    pub fn planning_with(mode: &str, policy: &str, provision: &[&str]) -> Option<Rig> {
        let site = "provision_seconds = 5\n";
        Rig::with("127.0.0.1", None, site, provision, |rig| {
            std::fs::write(rig.path("policy.toml"), policy).unwrap();
            rig.load(&[0.2; 60]);
            let series = ["cpu", "memory"].map(|metric| {
                format!(
                    "[[planning.series]]\nnode = \"a\"\nmetric = {metric:?}\ncsv = {:?}\n",
                    rig.path("a.csv")
                )
            });
            format!(
                "[planning]\nperiod_seconds = 1\nday_seconds = 288\nmode = {mode:?}\npolicy = {:?}\n{}",
                rig.path("policy.toml"),
                series.concat()
            )
        })
    }

    /// Node a's load, the present last.
    pub fn load(&self, shares: &[f64]) {
        let rows: String = (0..)
            .zip(shares)
            .map(|(i, v)| format!("{i},{v}\n"))
            .collect();
        let fresh = self.path("a.new");
        std::fs::write(&fresh, format!("timestamp,value\n{rows}")).unwrap();
        std::fs::rename(fresh, self.path("a.csv")).unwrap();
    }

    pub fn start_in(net: &Namespaces) -> Option<Rig> {
        let site = format!("netns = {:?}\naddress = {WEST:?}\n", net.west);
        Rig::with(CONTROL, Some(net.control.clone()), &site, &[], |_| {
            String::new()
        })
    }

    fn with(
        at: &str,
        inside: Option<String>,
        site: &str,
        provision: &[&str],
        more: impl FnOnce(&Rig) -> String,
    ) -> Option<Rig> {
        if Command::new("terraform").arg("version").output().is_err() {
            eprintln!("skipped: there is no terraform on this machine");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let mut rig = Rig {
            inside,
            controller: None,
            controller_at: format!("{at}:0").parse().unwrap(),
            _a: None,
            dir,
        };
        std::fs::write(rig.path("prices.toml"), PRICES).unwrap();
        let more = more(&rig);
        let config = format!(
            "data = {:?}\nprices = {:?}\nallow_plaintext = true\n\
             [provision]\nregister_seconds = 60\nretry_seconds = 1\n{}\n\
             [[site]]\nname = \"west\"\n{site}[[site]]\nname = \"bare\"\n{more}",
            rig.path("controller"),
            rig.path("prices.toml"),
            provision.join("\n"),
        );
        std::fs::write(rig.path("controller.toml"), config).unwrap();
        rig.restart_controller();
        let a = format!(
            "name = \"a\"\nsite = \"home\"\ndata = {:?}\ncontroller = \"{}\"\nallow_plaintext = true\n\
             listen = \"{at}:0\"\nreplication = \"{at}:0\"\nnbd = \"{at}:0\"\n",
            rig.path("a"),
            rig.controller_at
        );
        std::fs::write(rig.path("a.toml"), a).unwrap();
        rig._a = Some(rig.daemon(
            "a",
            &["node", "--config", rig.path("a.toml").to_str().unwrap()],
        ));
        rig.until("node a is there", || {
            rig.node("a").filter(|n| n["alive"] == true)
        });
        rig.run(&["volume", "create", "v", "--size", "8M", "--node", "a"]);
        Some(rig)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// In the namespace of everything but the nodes that are made.
    fn program(&self, args: &[&str]) -> Command {
        let binary = env!("CARGO_BIN_EXE_forerun");
        let mut command = match &self.inside {
            Some(name) => {
                let mut c = Command::new("ip");
                c.args(["netns", "exec", name, binary]);
                c
            }
            None => Command::new(binary),
        };
        command.args(args);
        command
    }

    fn forerun(&self, args: &[&str]) -> Command {
        let program = self.program(args);
        // a command that waits for ever must not hide the logs
        let mut bounded = Command::new("timeout");
        bounded
            .arg(PATIENCE.as_secs().to_string())
            .arg(program.get_program())
            .args(program.get_args())
            .args(["--output", "json"])
            .env_remove("RUST_LOG")
            .stdin(Stdio::null());
        bounded
    }

    fn daemon(&self, name: &str, args: &[&str]) -> Daemon {
        Daemon::start(self.program(args), &self.path(&format!("{name}.log")))
    }

    pub fn kill_controller(&mut self) {
        self.controller = None;
    }

    /// On the same store and address as before.
    pub fn restart_controller(&mut self) {
        let config = self.path("controller.toml");
        let at = self.controller_at.to_string();
        let args = [
            "controller",
            "--config",
            config.to_str().unwrap(),
            "--listen",
            &at,
        ];
        let daemon = self.daemon("controller", &args);
        self.controller_at = daemon.said("listening");
        self.controller = Some(daemon);
    }

    fn output(&self, args: &[&str]) -> std::process::Output {
        let at = self.controller_at.to_string();
        self.forerun(args)
            .args(["--controller", &at])
            .output()
            .unwrap()
    }

    /// A command that must succeed: the last line of its JSON.
    pub fn run(&self, args: &[&str]) -> Value {
        let out = self.output(args);
        let said = String::from_utf8_lossy(&out.stdout);
        let err = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{args:?}: {said}{err}");
        let last = said.lines().last().unwrap_or("null");
        serde_json::from_str(last)
            .or_else(|_| serde_json::from_str(&said))
            .unwrap_or_else(|e| panic!("{args:?}: {e}: {said}"))
    }

    /// A command that may fail: its JSON, or what it said.
    pub fn tried(&self, args: &[&str]) -> Result<Value, String> {
        let out = self.output(args);
        match out.status.success() {
            true => Ok(serde_json::from_slice(&out.stdout).unwrap()),
            false => Err(String::from_utf8_lossy(&out.stderr).into_owned()),
        }
    }

    /// A command that must succeed: every line of its JSON.
    pub fn lines(&self, args: &[&str]) -> Vec<Value> {
        let out = self.output(args);
        let said = String::from_utf8(out.stdout).unwrap();
        match serde_json::from_str(&said) {
            Ok(Value::Array(all)) => all,
            _ => said
                .lines()
                .map(|l| serde_json::from_str(l).unwrap())
                .collect(),
        }
    }

    pub fn spoil_prices(&self, text: &str) {
        std::fs::write(self.path("prices.toml"), text).unwrap();
    }

    /// A command that must fail: what it said.
    pub fn refused(&self, args: &[&str]) -> String {
        let out = self.output(args);
        assert!(!out.status.success(), "{args:?} was not refused");
        let said = String::from_utf8_lossy(&out.stdout);
        format!("{said}{}", String::from_utf8_lossy(&out.stderr))
    }

    /// Begin a command, and go on once its operation is logged.
    pub fn begin(&self, args: &[&str], id: &str) -> Asked {
        let at = self.controller_at.to_string();
        let log = File::create(self.path("asked.log")).unwrap();
        let mut command = self.forerun(args);
        command
            .args(["--controller", &at])
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let asked = Asked(command.spawn().unwrap());
        self.until("the operation is logged", || {
            let all = self.run(&["operation", "list"]);
            all.as_array()?.iter().any(|o| o["id"] == id).then_some(())
        });
        asked
    }

    pub fn node(&self, name: &str) -> Option<Value> {
        let all = self.run(&["node-list"]);
        all.as_array()?.iter().find(|n| n["name"] == name).cloned()
    }

    /// Nodes that have a consistent copy of the volume.
    pub fn copies(&self) -> Vec<String> {
        let all = self.run(&["replica", "list", "v"]);
        let is_consistent = |r: &&Value| r["state"].as_str().unwrap().starts_with("consistent");
        let consistent = all.as_array().unwrap().iter().filter(is_consistent);
        consistent
            .map(|r| r["node"].as_str().unwrap().to_owned())
            .collect()
    }

    /// What Terraform runs in.
    pub fn site(&self) -> PathBuf {
        self.path("controller/provision/west")
    }

    pub fn directory(&self, node: &str) -> PathBuf {
        self.site().join("nodes").join(node)
    }

    /// Nodes that Terraform started and that run.
    pub fn processes(&self) -> Vec<u32> {
        let ours = self.path("controller/provision");
        let ours = ours.to_str().unwrap();
        let pids = std::fs::read_dir("/proc").unwrap().flatten();
        pids.filter_map(|e| e.file_name().to_str()?.parse().ok())
            .filter(|pid| {
                let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let line = String::from_utf8_lossy(&line);
                let mut words = line.split('\0').skip(1);
                words.next() == Some("node") && words.any(|w| w.starts_with(ours))
            })
            .collect()
    }

    pub fn nothing_is_left_of(&self, node: &str) {
        assert_eq!(self.node(node), None);
        assert!(!self.directory(node).exists());
        let of_it = |pid: &u32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(&format!("nodes/{node}/"))
        };
        assert_eq!(self.processes().iter().filter(|p| of_it(p)).count(), 0);
    }

    /// The names in the site's Terraform state; the controller ends for it.
    pub fn in_state(&mut self) -> Vec<String> {
        self.kill_controller();
        let store = Embedded::open(&self.path("controller/controller.redb")).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let newest = runtime
            .block_on(store.last("provision/state/west/", 1))
            .unwrap();
        let state: Value =
            serde_json::from_slice(&newest.first().expect("a state was kept").1).unwrap();
        let resources = state["resources"].as_array().unwrap().iter();
        let instances = resources.flat_map(|r| r["instances"].as_array().unwrap());
        instances
            .map(|i| i["index_key"].as_str().unwrap().to_owned())
            .collect()
    }

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

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in ["controller", "a", "asked"] {
                let said = std::fs::read_to_string(self.path(&format!("{name}.log")));
                eprintln!("--- {name}\n{}", said.unwrap_or_default().trim_end());
            }
        }
        self.controller = None;
        for pid in self.processes() {
            let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
    }
}
