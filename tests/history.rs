//! A real Prometheus scrapes a small exporter that speaks as node_exporter and the libvirt exporter do,
//! one of its counters restarts at zero meanwhile, and the history that comes out holds the rates that
//! went in. A controller that is configured with that Prometheus plans by it.
#![allow(clippy::unwrap_used, clippy::print_stderr)] // tests: a panic is the report

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use forerun::history::{Exporter, Key, Metric, Prometheus, Source, Span};

/// What the guest is said to do in a second.
const CORES: f64 = 0.5;
const READ: f64 = 1e6;
const WRITTEN: f64 = 3e6;
const RECEIVED: f64 = 2e5;
const SENT: f64 = 4e5;
const MEMORY: f64 = 2e9;
/// Seconds after which the exporter's counters restart.
const RESTART: f64 = 9.0;
/// How long Prometheus scrapes, every second.
const SCRAPED: Duration = Duration::from_secs(20);

fn metrics(seconds: f64) -> String {
    let since = if seconds < RESTART {
        1000.0 + seconds
    } else {
        seconds - RESTART
    };
    let count = |rate: f64| since * rate;
    format!(
        r#"node_cpu_seconds_total{{cpu="0",mode="user"}} {user}
node_cpu_seconds_total{{cpu="0",mode="idle"}} {idle}
node_memory_MemTotal_bytes {total}
node_memory_MemAvailable_bytes {free}
node_disk_read_bytes_total{{device="vda"}} {read}
node_disk_written_bytes_total{{device="vda"}} {written}
node_network_receive_bytes_total{{device="eth0"}} {received}
node_network_receive_bytes_total{{device="lo"}} {read}
node_network_transmit_bytes_total{{device="eth0"}} {sent}
libvirt_domain_info_cpu_time_seconds_total{{domain="web"}} {user}
libvirt_domain_info_memory_usage_bytes{{domain="web"}} {used}
libvirt_domain_block_stats_read_bytes_total{{domain="web",target_device="vda"}} {half_read}
libvirt_domain_block_stats_read_bytes_total{{domain="web",target_device="vdb"}} {half_read}
libvirt_domain_block_stats_write_bytes_total{{domain="web",target_device="vda"}} {written}
libvirt_domain_interface_stats_receive_bytes_total{{domain="web",target_device="tap0"}} {received}
libvirt_domain_interface_stats_transmit_bytes_total{{domain="web",target_device="tap0"}} {sent}
"#,
        user = count(CORES),
        idle = count(1.0 - CORES),
        total = 2.0 * MEMORY,
        free = MEMORY,
        used = MEMORY,
        read = count(READ),
        half_read = count(READ / 2.0),
        written = count(WRITTEN),
        received = count(RECEIVED),
        sent = count(SENT),
    )
}

struct Stopped(Child);

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A daemon of ours, and what it said when it was ready. Its stdout stays open: it would be killed by a
/// closed pipe.
fn daemon(args: &[&str]) -> (Stopped, serde_json::Value, BufReader<ChildStdout>) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_forerun"))
        .args(args)
        .args(["--output", "json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    let ready = serde_json::from_str(&line).unwrap();
    (Stopped(child), ready, said)
}

/// A controller with this Prometheus for its nodes and its VMs, and one node with a volume.
fn plans_by(url: &str) {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("controller.toml");
    let text = format!(
        "listen = \"127.0.0.1:0\"\ndata = {:?}\nprices = {:?}\n\
         [planning]\nperiod_seconds = 2\nday_seconds = 576\nhistory_days = 1\n\
         [[planning.source]]\nof = \"nodes\"\nprometheus = {url:?}\n\
         [[planning.source]]\nof = \"vms\"\nprometheus = {url:?}\nnames = {{ disk = \"web\" }}\n",
        dir.path().join("controller"),
        dir.path().join("prices.toml"),
    );
    std::fs::write(&config, text).unwrap();
    let prices = "version = \"1\"\ncurrency = \"EUR\"\n[sites]\n";
    std::fs::write(dir.path().join("prices.toml"), prices).unwrap();
    let (_controller, ready, _said) = daemon(&["controller", "--config", config.to_str().unwrap()]);
    let at = ready["listening"].as_str().unwrap();
    let node = dir.path().join("a.toml");
    let text = format!(
        "name = \"a\"\nsite = \"home\"\ndata = {:?}\ncontroller = {at:?}\n\
         listen = \"127.0.0.1:0\"\nreplication = \"127.0.0.1:0\"\nnbd = \"127.0.0.1:0\"\n",
        dir.path().join("a"),
    );
    std::fs::write(&node, text).unwrap();
    let (_node, _, _said) = daemon(&["node", "--config", node.to_str().unwrap()]);
    let run = |args: &[&str]| {
        let out = Command::new(env!("CARGO_BIN_EXE_forerun"))
            .args(args)
            .args(["--controller", at, "--output", "json"])
            .output()
            .unwrap();
        serde_json::from_slice::<serde_json::Value>(&out.stdout).map_err(|_| out)
    };
    let until = std::time::Instant::now() + Duration::from_secs(120);
    let wait = |what: &str, found: &dyn Fn() -> bool| {
        while !found() {
            assert!(
                std::time::Instant::now() < until,
                "it does not happen that {what}"
            );
            std::thread::sleep(Duration::from_millis(500));
        }
    };
    wait("the node is there", &|| {
        run(&["node-list"]).is_ok_and(|all| all[0]["alive"] == true)
    });
    let create = ["volume", "create", "disk", "--size", "8M", "--node", "a"];
    let created = Command::new(env!("CARGO_BIN_EXE_forerun"))
        .args(create)
        .args(["--controller", at])
        .stdout(Stdio::null())
        .status();
    assert!(created.unwrap().success());
    // the host is busier than half a core, and has more memory in use: it is the VM that is meant
    wait("the VM's half core is what its disk's host needs", &|| {
        let plan = run(&["plan"]).unwrap_or_default();
        let needs = plan["needs"]["a"].as_array().cloned().unwrap_or_default();
        let need = |resource: &str| {
            let found = needs.iter().find(|n| n["resource"] == resource);
            found.and_then(|n| n["amount"].as_f64()).unwrap_or_default()
        };
        let memory = MEMORY / f64::from(1 << 30);
        (need("cpu") / CORES - 1.0).abs() < 0.5 && (need("memory") / memory - 1.0).abs() < 0.1
    });
    let plan = run(&["plan"]).unwrap();
    assert_eq!(plan["notes"].as_array().map(Vec::len), Some(0), "{plan}");
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs() as i64
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_prometheus_gives_back_the_rates_that_its_exporters_told() {
    if Command::new("prometheus")
        .arg("--version")
        .output()
        .is_err()
    {
        eprintln!("skipped: no prometheus here (Debian: apt-get install prometheus)");
        return;
    }
    let began = Arc::new(std::time::Instant::now());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let exporter = listener.local_addr().unwrap();
    let answer = move || async move { metrics(began.elapsed().as_secs_f64()) };
    let router = axum::Router::new().route("/metrics", axum::routing::get(answer));
    tokio::spawn(async move { axum::serve(listener, router).await });

    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("prometheus.yml");
    let text = format!(
        "global:\n  scrape_interval: 1s\nscrape_configs:\n  - job_name: fleet\n    static_configs:\n      - targets: ['{exporter}']\n"
    );
    std::fs::write(&config, text).unwrap();
    let port = free_port();
    let server = Command::new("prometheus")
        .arg(format!("--config.file={}", config.display()))
        .arg(format!(
            "--storage.tsdb.path={}",
            dir.path().join("data").display()
        ))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let _server = Stopped(server.unwrap());
    let from = now();
    tokio::time::sleep(SCRAPED).await;

    let span = Span {
        from,
        to: now(),
        step: 2,
    };
    let url = format!("http://127.0.0.1:{port}");
    for (kind, machine) in [
        (Exporter::Node, exporter.to_string()),
        (Exporter::Libvirt, "web".into()),
    ] {
        let source = Prometheus::new(&url, kind).unwrap();
        let found = source.histories(span).await.unwrap();
        assert_eq!(found.len(), Metric::MACHINE.len(), "{:?}", found.keys());
        for (metric, rate) in [
            (Metric::Cpu, CORES),
            (Metric::Memory, MEMORY),
            (Metric::DiskRead, READ),
            (Metric::DiskWrite, WRITTEN),
            (Metric::NetworkIn, RECEIVED),
            (Metric::NetworkOut, SENT),
        ] {
            let samples = &found[&Key {
                machine: machine.clone(),
                metric,
            }];
            assert!(samples.len() >= 4, "{metric:?} {samples:?}");
            assert!(
                samples.iter().all(|(at, _)| at % 2 == 0),
                "off the grid: {samples:?}"
            );
            // Across the restart a little is lost, and nothing is ever negative or a thousand too much.
            assert!(
                samples.iter().all(|(_, v)| (0.0..=1.5 * rate).contains(v)),
                "{metric:?} {samples:?}"
            );
            let mut values: Vec<f64> = samples.iter().map(|sample| sample.1).collect();
            values.sort_by(f64::total_cmp);
            let middle = values[values.len() / 2];
            assert!(
                (middle - rate).abs() < 0.1 * rate,
                "{metric:?}: {middle} of {rate}, {samples:?}"
            );
        }
    }
    tokio::task::spawn_blocking(move || plans_by(&url))
        .await
        .unwrap();
}
