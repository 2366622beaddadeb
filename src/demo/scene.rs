//! The demo's fleet: a controller, two nodes, one volume, and the calls that the command line makes.

use super::LOOK;
use super::processes::Daemon;
use crate::cli::{Failure, Out, Sending, carry_out, connect};
use node::client::Uri;
use node::client::verify::Verifier;
use node::{Error, VolumeId};
use proto::v1::fleet_client::FleetClient;
use proto::v1::start_request::Command;
use proto::v1::{self, CutoverProgress, ReplicaReport};
use std::path::Path;
use std::time::{Duration, Instant};
use tonic::transport::Channel;

const VOLUME: &str = "demo";
/// Small enough that a few increments go by within the demo's minute.
const BOUND: Duration = Duration::from_secs(1);
/// Nodes register within this time.
const REGISTER: Duration = Duration::from_secs(10);

/// Everything that runs.
pub struct Scene {
    controller: Daemon,
    nodes: Vec<Daemon>,
    address: String,
    client: FleetClient<Channel>,
}

impl Scene {
    /// Start everything in `dir`, and wait until both nodes have registered.
    pub async fn start(dir: &Path) -> Result<Scene, Failure> {
        let data = dir.join("controller");
        let args = [
            "controller",
            "--listen",
            "127.0.0.1:0",
            "--data",
            &data.to_string_lossy(),
        ];
        let controller = Daemon::start("controller", dir, &args).await?;
        let address = controller.said("listening")?;
        let mut nodes = Vec::new();
        for name in ["n1", "n2"] {
            let config = dir.join(format!("{name}.toml"));
            let text = node_config(name, &dir.join(name), &address);
            std::fs::write(&config, text)
                .map_err(|e| Error::io(format!("write {}", config.display()), e))?;
            let args = ["node", "--config", &config.to_string_lossy()];
            nodes.push(Daemon::start(name, dir, &args).await?);
        }
        let client = connect(&address).await?;
        let scene = Scene {
            controller,
            nodes,
            address,
            client,
        };
        scene.wait_for_nodes().await?;
        Ok(scene)
    }

    async fn wait_for_nodes(&self) -> Result<(), Failure> {
        let until = Instant::now() + REGISTER;
        loop {
            let answer = self
                .client
                .clone()
                .list_nodes(v1::ListNodesRequest {})
                .await?
                .into_inner();
            if answer.nodes.iter().filter(|n| n.alive).count() == self.nodes.len() {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(Failure::new(format!(
                    "the nodes did not register within {REGISTER:?}"
                )));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn command(&self, command: Command) -> Result<v1::Operation, Failure> {
        carry_out(&self.address, Sending::default(), command, &Out::silent()).await
    }

    /// Make the volume on n1.
    pub async fn create_volume(&self, size_bytes: u64) -> Result<VolumeId, Failure> {
        let create = v1::CreateVolume {
            volume: VOLUME.into(),
            size_bytes,
            node: "n1".into(),
        };
        self.command(Command::CreateVolume(create)).await?;
        Ok(self.volume().await?.id.parse()?)
    }

    async fn volume(&self) -> Result<v1::Volume, Failure> {
        let request = v1::ListVolumesRequest {
            volume: VOLUME.into(),
        };
        let answer = self
            .client
            .clone()
            .list_volumes(request)
            .await?
            .into_inner();
        let volume = answer.volumes.into_iter().next();
        volume.ok_or_else(|| Failure::new("the controller does not list the demo's volume"))
    }

    /// Where the volume's owner serves it, once it says so.
    pub async fn uri(&self) -> Result<Uri, Failure> {
        let until = Instant::now() + REGISTER;
        loop {
            let request = v1::AttachRequest {
                volume: VOLUME.into(),
            };
            match self.client.clone().attach(request).await {
                Ok(answer) => {
                    let answer = answer.into_inner();
                    let first = answer.uris.first().map_or("", String::as_str);
                    return Ok(first.parse()?);
                }
                // The owner tells with its next heartbeat.
                Err(e) if Instant::now() > until => return Err(e.into()),
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// Keep a replica on n2.
    pub async fn add_replica(&self) -> Result<(), Failure> {
        let add = v1::AddReplica {
            volume: VOLUME.into(),
            node: "n2".into(),
            consistency: Some(crate::controller::consistency(
                crate::fleet::Consistency::Bounded(BOUND),
            )),
            rate_bytes_per_second: 0,
        };
        self.command(Command::AddReplica(add)).await.map(|_| ())
    }

    /// The replica's report once it is as `ready` wants it.
    pub async fn replica_when(
        &self,
        load: &Verifier,
        patience: Duration,
        ready: impl Fn(&ReplicaReport) -> bool,
    ) -> Result<ReplicaReport, Failure> {
        let until = Instant::now() + patience;
        loop {
            let volume = self.volume().await?;
            let report = volume
                .replicas
                .into_iter()
                .find_map(|r| r.report)
                .unwrap_or_default();
            if ready(&report) {
                return Ok(report);
            }
            if load.is_lost() {
                return Err(Failure::new(
                    "the client lost its connection while the replica was made",
                ));
            }
            if Instant::now() > until {
                return Err(Failure::new(format!(
                    "the replica on n2 was not ready within {patience:?}; it says: {:?} {}",
                    report.state(),
                    report.trouble
                )));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Move the volume to n2.
    pub async fn cutover(&self) -> Result<CutoverProgress, Failure> {
        let cutover = v1::Cutover {
            volume: VOLUME.into(),
            to: "n2".into(),
        };
        let operation = self.command(Command::Cutover(cutover)).await?;
        Ok(operation.cutover.unwrap_or_default())
    }

    /// Stop everything, the nodes first.
    pub async fn stop(self) -> Result<(), Failure> {
        for node in self.nodes {
            node.stop().await?;
        }
        Ok(self.controller.stop().await?)
    }
}

fn node_config(name: &str, data: &Path, controller: &str) -> String {
    // Debug writes a quoted string with the escapes that TOML knows.
    format!(
        "name = {name:?}\nsite = \"demo\"\ndata = {:?}\ncontroller = {controller:?}\n\
         listen = \"127.0.0.1:0\"\nreplication = \"127.0.0.1:0\"\nnbd = \"127.0.0.1:0\"\n",
        data.to_string_lossy()
    )
}
