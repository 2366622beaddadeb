//! Listening sockets, and what to do about one that a dead server left behind.

use super::Listen;
use block::{Error, ErrorKind, Result};
use nbd::Exports;
use nbd::accept::{Accepted, accept};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

pub(crate) enum Listener {
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener),
}

pub(crate) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Listener {
    pub(crate) fn bind(listen: &Listen) -> Result<Listener> {
        match listen {
            Listen::Unix(path) => {
                make_way(path)?;
                let listener = UnixListener::bind(path)
                    .map_err(|e| Error::io(format!("listen on socket {}", path.display()), e))?;
                let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
                Ok(Listener::Unix(listener, path))
            }
            Listen::Tcp(addr) => {
                let what = || format!("listen on {addr} (another port may be free)");
                let listener =
                    std::net::TcpListener::bind(addr).map_err(|e| Error::io(what(), e))?;
                listener
                    .set_nonblocking(true)
                    .and_then(|()| TcpListener::from_std(listener))
                    .map(Listener::Tcp)
                    .map_err(|e| Error::io(what(), e))
            }
        }
    }

    /// How clients are to name it.
    pub(crate) fn uri(&self, export: &str) -> Result<String> {
        match self {
            Listener::Unix(_, path) => Ok(format!(
                "nbd+unix:///{}?socket={}",
                escape(export),
                escape(&path.to_string_lossy())
            )),
            Listener::Tcp(listener) => {
                let addr = listener
                    .local_addr()
                    .map_err(|e| Error::io("ask for the address that is listened on", e))?;
                Ok(format!("nbd://{addr}/{}", escape(export)))
            }
        }
    }

    /// The address listened on, whose port the kernel may have chosen.
    pub(crate) fn tcp_address(&self) -> Result<std::net::SocketAddr> {
        match self {
            Listener::Tcp(listener) => listener
                .local_addr()
                .map_err(|e| Error::io("ask for the address that is listened on", e)),
            Listener::Unix(_, path) => Err(Error::new(
                ErrorKind::Invalid,
                format!("socket {} has no address", path.display()),
            )),
        }
    }

    pub(crate) async fn accept(&self) -> io::Result<Stream> {
        match self {
            Listener::Unix(l, _) => l.accept().await.map(|(s, _)| Stream::Unix(s)),
            Listener::Tcp(l) => l.accept().await.map(|(s, _)| Stream::Tcp(s)),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Listener::Unix(_, path) = self {
            // Nobody could connect to it any more.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Stream {
    pub(crate) async fn handshake(
        self,
        exports: &(dyn Exports + Sync),
        deadline: Duration,
    ) -> Result<Accepted> {
        match self {
            Stream::Unix(s) => accept(s, exports, deadline).await,
            Stream::Tcp(s) => accept(s, exports, deadline).await,
        }
    }
}

/// Remove a socket on which nobody listens; refuse to touch anything else.
fn make_way(path: &Path) -> Result<()> {
    let shown = path.display();
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io(format!("look at socket {shown}"), e)),
        Ok(meta) if !meta.file_type().is_socket() => Err(Error::new(
            ErrorKind::Exists,
            format!(
                "listen on socket {shown}: there is something else of that name; remove it or use another --socket"
            ),
        )),
        Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "socket {shown} is busy: another server listens on it; stop it or use another --socket"
                ),
            )),
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)
                .map_err(|e| Error::io(format!("remove stale socket {shown}"), e)),
            Err(e) => Err(Error::io(format!("see whether socket {shown} is busy"), e)),
        },
    }
}

/// Percent-encode what a URI cannot hold as it is.
fn escape(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    for b in s.bytes() {
        if b.is_ascii_alphanumeric() || b"-._~/".contains(&b) {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_a_busy_one_and_a_file_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let e = make_way(&path).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Busy);
        assert!(e.to_string().contains("--socket"));
        drop(listener);
        make_way(&path).unwrap();
        assert!(!path.exists());
        std::fs::write(&path, b"data").unwrap();
        assert_eq!(make_way(&path).unwrap_err().kind(), ErrorKind::Exists);
        assert!(path.exists());
    }

    #[test]
    fn names_in_a_uri_are_escaped() {
        assert_eq!(escape("a b/ü"), "a%20b/%C3%BC");
    }
}
