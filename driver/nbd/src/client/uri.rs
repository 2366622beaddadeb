//! NBD URIs: `nbd://host:port/name`, `nbd+unix:///name?socket=/path`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use block::{Error, ErrorKind, Result};

/// The port that is meant when none is given.
const PORT: u16 = 10809;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// Host name or address, and port.
    Tcp(String, u16),
    /// A unix socket.
    Unix(PathBuf),
}

/// An export of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uri {
    /// The server.
    pub address: Address,
    /// The export's name; empty for the default.
    pub export: String,
}

impl FromStr for Uri {
    type Err = Error;

    fn from_str(s: &str) -> Result<Uri> {
        let bad = |why: &str| {
            Error::new(
                ErrorKind::Invalid,
                format!(
                    "NBD URI {s:?}: {why}; it looks like nbd://host:port/name or \
                     nbd+unix:///name?socket=/path"
                ),
            )
        };
        let (scheme, rest) = s.split_once("://").ok_or_else(|| bad("no scheme"))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let export = decode(path).ok_or_else(|| bad("bad %-escape in the name"))?;
        let address = match scheme {
            "nbd" => tcp(authority).ok_or_else(|| bad("bad host or port"))?,
            "nbd+unix" if !authority.is_empty() => return Err(bad("a unix socket has no host")),
            "nbd+unix" => {
                let socket = query
                    .split('&')
                    .find_map(|pair| pair.strip_prefix("socket="));
                let path = socket.and_then(decode).filter(|p| !p.is_empty());
                Address::Unix(path.ok_or_else(|| bad("no socket"))?.into())
            }
            "nbds" | "nbds+unix" => return Err(bad("this client has no TLS")),
            _ => return Err(bad("unknown scheme")),
        };
        Ok(Uri { address, export })
    }
}

fn tcp(authority: &str) -> Option<Address> {
    // an IPv6 address stands in brackets, and its colons are no port
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']')?;
            (
                host,
                after.strip_prefix(':').or(after.is_empty().then_some(""))?,
            )
        }
        None => authority.split_once(':').unwrap_or((authority, "")),
    };
    let port = if port.is_empty() {
        PORT
    } else {
        port.parse().ok()?
    };
    let host = if host.is_empty() { "localhost" } else { host };
    Some(Address::Tcp(host.to_owned(), port))
}

fn decode(s: &str) -> Option<String> {
    let mut out = Vec::with_capacity(s.len());
    let mut bytes = s.bytes();
    while let Some(b) = bytes.next() {
        out.push(match b {
            b'%' => {
                let hex = |b: u8| char::from(b).to_digit(16);
                (hex(bytes.next()?)? * 16 + hex(bytes.next()?)?) as u8
            }
            b => b,
        });
    }
    String::from_utf8(out).ok()
}

/// A string as part of a URI.
struct Encoded<'a>(&'a str);

impl fmt::Display for Encoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for b in self.0.bytes() {
            match b {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                    write!(f, "{}", char::from(b))?;
                }
                b => write!(f, "%{b:02X}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let export = Encoded(&self.export);
        match &self.address {
            Address::Tcp(host, port) if host.contains(':') => {
                write!(f, "nbd://[{host}]:{port}/{export}")
            }
            Address::Tcp(host, port) => write!(f, "nbd://{host}:{port}/{export}"),
            Address::Unix(path) => {
                let path = path.to_string_lossy();
                write!(f, "nbd+unix:///{export}?socket={}", Encoded(&path))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_read_back() {
        for (uri, address, export) in [
            ("nbd://h:1/vm1", Address::Tcp("h".into(), 1), "vm1"),
            ("nbd://[::1]:7/", Address::Tcp("::1".into(), 7), ""),
            (
                "nbd+unix:///?socket=/run/x.sock",
                Address::Unix("/run/x.sock".into()),
                "",
            ),
            (
                "nbd+unix:///a%20b?socket=/r/%C3%A4",
                Address::Unix("/r/ä".into()),
                "a b",
            ),
        ] {
            let parsed: Uri = uri.parse().unwrap();
            assert_eq!(
                parsed,
                Uri {
                    address,
                    export: export.to_owned()
                },
                "{uri}"
            );
            assert_eq!(parsed.to_string(), uri);
        }
        assert_eq!(
            "nbd://h".parse::<Uri>().unwrap().to_string(),
            "nbd://h:10809/"
        );
        assert_eq!(
            "nbd://".parse::<Uri>().unwrap().to_string(),
            "nbd://localhost:10809/"
        );
    }

    #[test]
    fn what_is_no_uri_is_told_what_one_looks_like() {
        for bad in [
            "",
            "vm1",
            "http://h/",
            "nbd://h:x/",
            "nbd://h:99999/",
            "nbd+unix:///x",
            "nbd+unix:///?socket=",
            "nbd+unix://h/x?socket=/s",
            "nbds://h/",
            "nbd://[::1/",
            "nbd://h/%",
            "nbd://h/%zz",
        ] {
            let error = bad.parse::<Uri>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(
                error.to_string().contains("nbd://host:port/name"),
                "{error}"
            );
        }
    }
}
