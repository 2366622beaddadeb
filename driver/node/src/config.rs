//! The node's configuration: one TOML file.
//!
//! ```toml
//! name = "n1"
//! site = "paris-1"
//! data = "/var/lib/forerun/node"
//! controller = "10.0.0.5:7400"
//! advertise = "10.0.0.7"          # by which others reach this host
//! listen = "10.0.0.7:7401"        # the controller's calls
//! replication = "10.0.0.7:7402"   # other nodes' replicas
//! nbd = "10.0.0.7:7403"           # guests on other hosts
//! ```

use block::{Error, ErrorKind, NodeName, Result, VolumeName};
use serde::Deserialize;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

/// What `forerun node --config FILE` reads.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The node's name, unique in the fleet.
    #[serde(deserialize_with = "name")]
    pub name: NodeName,
    /// Its failure domain and price zone.
    #[serde(default = "default_site")]
    pub site: String,
    /// Where volumes and their metadata are kept. One process may use it.
    pub data: PathBuf,
    /// The controller to register with. Without one the node serves what it has.
    pub controller: Option<String>,
    /// Shown once to the controller by a node that it had made.
    #[serde(default)]
    pub token: String,
    /// The address by which others reach this host, where it is not the one listened on.
    pub advertise: Option<IpAddr>,
    /// Where to take the controller's calls.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// Where to take replication.
    #[serde(default = "default_replication")]
    pub replication: SocketAddr,
    /// Where to serve NBD, beside a unix socket for each volume.
    #[serde(default = "default_nbd")]
    pub nbd: SocketAddr,
    /// Threads with a ring; 0 is one for each processor.
    #[serde(default = "default_shards")]
    pub shards: usize,
    /// Give each shard a processor of its own.
    #[serde(default)]
    pub pin: bool,
    /// Listen without encryption on addresses that are not loopback. Whoever reaches them can read
    /// and write every volume.
    #[serde(default)]
    pub allow_plaintext: bool,
    /// Volumes whose image was exchanged on purpose: taken as it is, and compared with every replica.
    /// Said when the node is started and never in the file, or the next mistake would pass unnoticed.
    #[serde(skip)]
    pub adopt_images: Vec<VolumeName>,
}

fn name<'de, D: serde::Deserializer<'de>>(d: D) -> std::result::Result<NodeName, D::Error> {
    String::deserialize(d)?
        .parse()
        .map_err(serde::de::Error::custom)
}

fn default_site() -> String {
    "default".to_owned()
}

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), port)
}

fn default_listen() -> SocketAddr {
    loopback(7401)
}

fn default_replication() -> SocketAddr {
    loopback(7402)
}

fn default_nbd() -> SocketAddr {
    loopback(7403)
}

fn default_shards() -> usize {
    1
}

impl Config {
    /// Read and check a file.
    pub fn read(path: &Path) -> Result<Config> {
        let asked = format!("read the node's configuration {}", path.display());
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(asked.clone(), e))?;
        Config::parse(&text).map_err(|e| e.within(asked))
    }

    fn parse(text: &str) -> Result<Config> {
        let config: Config = toml::from_str(text)
            .map_err(|e| Error::new(ErrorKind::Invalid, e.to_string().trim_end().to_owned()))?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let listeners = [
            ("listen", self.listen),
            ("replication", self.replication),
            ("nbd", self.nbd),
        ];
        for (key, address) in listeners {
            if !address.ip().is_loopback() && !self.allow_plaintext {
                return Err(Error::new(
                    ErrorKind::Denied,
                    format!(
                        "{key} = \"{address}\": there is no encryption yet, and whoever reaches this \
                         address can read and write every volume. Use 127.0.0.1, or set \
                         allow_plaintext = true on a network you trust"
                    ),
                ));
            }
            if address.ip().is_unspecified() && self.advertise.is_none() {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    format!(
                        "{key} = \"{address}\": others cannot be told this address; set advertise to \
                         the one by which they reach this host"
                    ),
                ));
            }
        }
        Ok(())
    }

    /// What to tell others about a listener.
    #[must_use]
    pub fn advertised(&self, listening: SocketAddr) -> SocketAddr {
        SocketAddr::new(self.advertise.unwrap_or(listening.ip()), listening.port())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_and_a_directory_are_enough() {
        let c = Config::parse("name = \"n1\"\ndata = \"/d\"").unwrap();
        assert_eq!(c.listen, loopback(7401));
        assert_eq!(c.controller, None);
        assert_eq!(c.advertised(c.nbd), c.nbd);
    }

    #[test]
    fn what_would_be_unsafe_or_unreachable_is_refused_with_its_key() {
        let refused = |more: &str, kind, words: &str| {
            let e = Config::parse(&format!("name = \"n1\"\ndata = \"/d\"\n{more}")).unwrap_err();
            assert_eq!(e.kind(), kind, "{e}");
            assert!(e.to_string().contains(words), "{e}");
        };
        refused("nbd = \"10.0.0.1:1\"", ErrorKind::Denied, "nbd = ");
        refused(
            "listen = \"0.0.0.0:1\"\nallow_plaintext = true",
            ErrorKind::Invalid,
            "advertise",
        );
        refused("nmae = 1", ErrorKind::Invalid, "nmae");
        let e = Config::parse("name = \"../x\"\ndata = \"/d\"").unwrap_err();
        assert!(e.to_string().contains("node name"), "{e}");
    }
}
