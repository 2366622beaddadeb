//! The controller's configuration.

use node::{Error, ErrorKind, Result};
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// What `forerun controller --config FILE` reads.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where to take calls.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// Where the store is kept.
    #[serde(default = "default_data")]
    pub data: PathBuf,
    /// Take calls in plain text on an address that is not loopback. Anybody who reaches it commands
    /// the fleet.
    #[serde(default)]
    pub allow_plaintext: bool,
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7400))
}

fn default_data() -> PathBuf {
    PathBuf::from("/var/lib/forerun/controller")
}

impl Default for Config {
    fn default() -> Config {
        Config {
            listen: default_listen(),
            data: default_data(),
            allow_plaintext: false,
        }
    }
}

impl Config {
    /// Read a TOML file.
    pub fn read(path: &Path) -> Result<Config> {
        let asked = format!("read the controller's configuration {}", path.display());
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(asked.clone(), e))?;
        toml::from_str(&text).map_err(|e| {
            Error::new(
                ErrorKind::Invalid,
                format!("{asked}: {}", e.to_string().trim_end()),
            )
        })
    }

    /// Refuse what would hand the fleet to the network.
    pub fn check(&self) -> Result<()> {
        if self.listen.ip().is_loopback() || self.allow_plaintext {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Denied,
            format!(
                "listen on {}: calls are not encrypted, and whoever reaches this address commands the \
                 fleet. Listen on 127.0.0.1, or pass --allow-plaintext on a network you trust",
                self.listen
            ),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_off_loopback_must_be_asked_for() {
        let mut config = Config::default();
        config.check().unwrap();
        config.listen = "0.0.0.0:7400".parse().unwrap();
        let e = config.check().unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Denied);
        assert!(e.to_string().contains("--allow-plaintext"));
        config.allow_plaintext = true;
        config.check().unwrap();
    }

    #[test]
    fn a_misspelt_key_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, "lisen = \"127.0.0.1:1\"\n").unwrap();
        let e = Config::read(&path).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Invalid);
        assert!(e.to_string().contains("lisen"), "{e}");
    }
}
