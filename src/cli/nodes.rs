//! `forerun node-list`.

use super::client::connect;
use super::out::{bytes, duration, figure, text};
use super::{Failure, Out};
use proto::v1::{ListNodesRequest, NodeInfo};
use serde::Serialize;
use std::time::Duration;

#[derive(Serialize)]
struct Row {
    name: String,
    site: String,
    address: String,
    alive: bool,
    /// None: the controller has not heard it since it began.
    heartbeat_age_ms: Option<u64>,
    owned: u32,
    replicas: u32,
    data_free_bytes: u64,
    data_total_bytes: u64,
    cpus: u32,
    cpu_percent: f64,
    memory_available_bytes: u64,
    memory_total_bytes: u64,
    shape: String,
    draining: bool,
}

impl From<NodeInfo> for Row {
    fn from(n: NodeInfo) -> Row {
        let m = n.metrics.unwrap_or_default();
        Row {
            name: n.name,
            site: n.site,
            address: n.address,
            alive: n.alive,
            heartbeat_age_ms: Some(n.heartbeat_age_ms).filter(|age| *age != u64::MAX),
            owned: n.owned,
            replicas: n.replicas,
            data_free_bytes: m.data_free_bytes,
            data_total_bytes: m.data_total_bytes,
            cpus: m.cpus,
            cpu_percent: f64::from(m.cpu_permille) / 10.0,
            memory_available_bytes: m.memory_available_bytes,
            memory_total_bytes: m.memory_total_bytes,
            shape: n.shape,
            draining: n.draining,
        }
    }
}

/// List the nodes.
pub async fn list(controller: &str, out: &Out) -> Result<(), Failure> {
    let answer = connect(controller)
        .await?
        .list_nodes(ListNodesRequest {})
        .await?
        .into_inner();
    let rows: Vec<Row> = answer.nodes.into_iter().map(Row::from).collect();
    out.list(
        &rows,
        &[
            text("NODE"),
            text("SITE"),
            text("SHAPE"),
            text("STATE"),
            figure("OWNED"),
            figure("REPLICAS"),
            figure("FREE"),
            figure("CPU"),
            text("ADDRESS"),
        ],
        |r| {
            let said = |figure: String| r.heartbeat_age_ms.map_or(String::new(), |_| figure);
            vec![
                r.name.clone(),
                r.site.clone(),
                r.shape.clone(),
                match (r.alive, r.draining, r.heartbeat_age_ms) {
                    (true, false, _) => "alive".into(),
                    (true, true, _) => "being emptied".into(),
                    (false, _, Some(age)) => {
                        format!("silent for {}", duration(Duration::from_millis(age)))
                    }
                    (false, _, None) => "silent".into(),
                },
                r.owned.to_string(),
                r.replicas.to_string(),
                said(bytes(r.data_free_bytes)),
                said(format!("{:.0}%", r.cpu_percent)),
                r.address.clone(),
            ]
        },
        "No node has registered yet. Start one with `forerun node --config FILE`.",
    );
    Ok(())
}
