//! `forerun volume`: make, adopt, list, show, grow and delete volumes.

use super::client::connect;
use super::operation::{Sending, carry_out};
use super::out::{bytes, duration, figure, text};
use super::replica::ReplicaRow;
use super::{Failure, Out, size};
use proto::v1::start_request::Command;
use proto::v1::{self, ListVolumesRequest};
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;

/// What to do with volumes.
#[derive(clap::Subcommand, Debug)]
pub enum Verb {
    /// Make an empty volume
    Create {
        /// Its name
        volume: String,
        /// Its size, for example 10G
        #[arg(long, value_parser = size::parse)]
        size: u64,
        /// The node that will own it; without, the one with the most free space
        #[arg(long)]
        node: Option<String>,
        #[command(flatten)]
        sending: Sending,
    },
    /// Adopt an existing raw image or block device, which stays where it is
    Import {
        /// The volume's name from now on
        volume: String,
        /// Absolute path on the node
        #[arg(long)]
        path: PathBuf,
        /// The node that has it
        #[arg(long)]
        node: String,
        #[command(flatten)]
        sending: Sending,
    },
    /// List the volumes
    List,
    /// Show one volume with its replicas
    Show {
        /// Which
        volume: String,
    },
    /// Grow a volume and its replicas
    Resize {
        /// Which
        volume: String,
        /// Its new size
        #[arg(long, value_parser = size::parse)]
        size: u64,
        #[command(flatten)]
        sending: Sending,
    },
    /// Delete a volume and its replicas; an imported image stays
    Delete {
        /// Which
        volume: String,
        /// Do not wait for nodes that are silent: they delete their copies when they come back
        #[arg(long)]
        forget_unreachable: bool,
        #[command(flatten)]
        sending: Sending,
    },
}

/// A volume as it is listed.
#[derive(Serialize)]
struct Row {
    name: String,
    id: String,
    size_bytes: u64,
    owner: String,
    generation: u64,
    epoch: u64,
    status: String,
    former: Vec<String>,
    connections: u32,
    reads: u64,
    writes: u64,
    read_bytes: u64,
    written_bytes: u64,
    io_errors: u64,
    /// None: its owner has said nothing of it since the controller began.
    report_age_ms: Option<u64>,
    trouble: String,
    replicas: Vec<ReplicaRow>,
}

impl From<v1::Volume> for Row {
    fn from(v: v1::Volume) -> Row {
        let io = v.io.unwrap_or_default();
        let replicas = v
            .replicas
            .into_iter()
            .map(|r| ReplicaRow::new(&v.name, r))
            .collect();
        Row {
            id: v.id,
            size_bytes: v.size_bytes,
            owner: v.owner,
            generation: v.generation,
            epoch: v.epoch,
            status: v.status,
            former: v.former,
            connections: io.connections,
            reads: io.reads,
            writes: io.writes,
            read_bytes: io.read_bytes,
            written_bytes: io.written_bytes,
            io_errors: io.errors,
            report_age_ms: Some(v.report_age_ms).filter(|age| *age != u64::MAX),
            trouble: v.trouble,
            replicas,
            name: v.name,
        }
    }
}

/// `forerun volume ...`.
pub async fn run(verb: Verb, controller: &str, out: &Out) -> Result<(), Failure> {
    match verb {
        Verb::List => list(controller, out).await,
        Verb::Show { volume } => show(&volume, controller, out).await,
        Verb::Create {
            volume,
            size,
            node,
            sending,
        } => {
            let done = format!("Volume {volume} made: {}.", bytes(size));
            let command = Command::CreateVolume(v1::CreateVolume {
                volume: volume.clone(),
                size_bytes: size,
                node: node.unwrap_or_default(),
            });
            carry_out(controller, sending, command, out).await?;
            say(out, done, &format!("forerun attach {volume}"));
            Ok(())
        }
        Verb::Import {
            volume,
            path,
            node,
            sending,
        } => {
            let path = path
                .into_os_string()
                .into_string()
                .map_err(|p| Failure::usage(format!("import {p:?}: the path is not UTF-8")))?;
            let done = format!("{path} on {node} is now volume {volume}.");
            let command = Command::ImportVolume(v1::ImportVolume {
                volume: volume.clone(),
                node,
                path,
            });
            carry_out(controller, sending, command, out).await?;
            say(out, done, &format!("forerun attach {volume}"));
            Ok(())
        }
        Verb::Resize {
            volume,
            size,
            sending,
        } => {
            let done = format!("Volume {volume} has {} now.", bytes(size));
            let command = Command::ResizeVolume(v1::ResizeVolume {
                volume,
                size_bytes: size,
            });
            carry_out(controller, sending, command, out).await?;
            say(out, done, "");
            Ok(())
        }
        Verb::Delete {
            volume,
            forget_unreachable,
            sending,
        } => {
            let done = format!("Volume {volume} is deleted.");
            let command = Command::DeleteVolume(v1::DeleteVolume {
                volume,
                forget_unreachable,
            });
            carry_out(controller, sending, command, out).await?;
            say(out, done, "");
            Ok(())
        }
    }
}

/// Say that it is done, and what one does next.
fn say(out: &Out, done: String, next: &str) {
    if !out.is_json() {
        out.line(done);
        if !next.is_empty() {
            out.note(format!("Next: {next}"));
        }
    }
}

async fn rows(volume: &str, controller: &str) -> Result<Vec<Row>, Failure> {
    let request = ListVolumesRequest {
        volume: volume.to_owned(),
    };
    let answer = connect(controller)
        .await?
        .list_volumes(request)
        .await?
        .into_inner();
    Ok(answer.volumes.into_iter().map(Row::from).collect())
}

async fn list(controller: &str, out: &Out) -> Result<(), Failure> {
    let rows = rows("", controller).await?;
    out.list(
        &rows,
        &[
            text("VOLUME"),
            figure("SIZE"),
            text("OWNER"),
            text("STATUS"),
            figure("CLIENTS"),
            text("REPLICAS"),
        ],
        |r| {
            let replicas: Vec<String> = r.replicas.iter().map(ReplicaRow::short).collect();
            vec![
                r.name.clone(),
                bytes(r.size_bytes),
                r.owner.clone(),
                if r.trouble.is_empty() {
                    r.status.clone()
                } else {
                    format!("{}: {}", r.status, r.trouble)
                },
                r.connections.to_string(),
                replicas.join(", "),
            ]
        },
        "No volumes. `forerun volume create NAME --size 10G` makes one.",
    );
    Ok(())
}

async fn show(volume: &str, controller: &str, out: &Out) -> Result<(), Failure> {
    for r in rows(volume, controller).await? {
        if out.is_json() {
            out.json(&r);
            continue;
        }
        let fact = |name: &str, value: String| {
            if !value.is_empty() {
                out.line(format!("{name:<12} {value}"));
            }
        };
        fact("volume", r.name.clone());
        fact("id", r.id.clone());
        fact(
            "size",
            format!("{} ({} bytes)", bytes(r.size_bytes), r.size_bytes),
        );
        fact("status", r.status.clone());
        fact("trouble", r.trouble.clone());
        fact("owner", format!("{}, generation {}", r.owner, r.generation));
        fact("former", r.former.join(", "));
        fact("epoch", r.epoch.to_string());
        fact("clients", r.connections.to_string());
        // A node that does not count them yet reports none.
        if r.reads + r.writes > 0 {
            let done = |n, requests| format!("{} in {requests} requests", bytes(n));
            fact("read", done(r.read_bytes, r.reads));
            fact("written", done(r.written_bytes, r.writes));
            fact("I/O errors", r.io_errors.to_string());
        }
        fact(
            "reported",
            match r.report_age_ms {
                Some(age) => format!("{} ago", duration(Duration::from_millis(age))),
                None => "nothing yet".to_owned(),
            },
        );
        if !r.replicas.is_empty() {
            out.line("");
            super::replica::table(&r.replicas, out);
        }
    }
    Ok(())
}
