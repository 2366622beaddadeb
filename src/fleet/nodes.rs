//! Nodes and where they stand.

use super::text;
use node::NodeName;
use serde::{Deserialize, Serialize};

/// A node as it registered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its name, unique in the fleet.
    #[serde(with = "text")]
    pub name: NodeName,
    /// Its failure domain and price zone.
    pub site: String,
    /// Where it takes the controller's calls, ADDR:PORT.
    pub address: String,
    /// Where it takes replication.
    pub replication_address: String,
    /// Where it serves NBD.
    pub nbd_address: String,
    /// The shape in which it was bought; none if people brought it.
    #[serde(default)]
    pub shape: Option<String>,
    /// It is being emptied: nothing new comes to it.
    #[serde(default)]
    pub draining: bool,
}

/// A node as the controller sees it now.
#[derive(Clone, Debug)]
pub struct NodeView {
    /// How it registered.
    pub node: Node,
    /// Whether its heartbeats come.
    pub alive: bool,
    /// Free space of its data directory, as it said last.
    pub free_bytes: u64,
}
