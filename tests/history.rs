//! A real Prometheus scrapes a small exporter that speaks as node_exporter and the libvirt exporter do,
//! one of its counters restarts at zero meanwhile, and the history that comes out holds the rates that
//! went in.
#![allow(clippy::unwrap_used, clippy::print_stderr)] // tests: a panic is the report

use std::process::{Child, Command, Stdio};
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
}
