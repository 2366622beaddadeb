//! Connecting: to a unix or TCP socket, and through the negotiation.

use std::io::{self, IoSlice, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use block::{Error, ErrorKind, Result};

use super::negotiate::{self, negotiate};
use super::{Address, Agreed, Uri};

/// Connect to an export and negotiate, for a caller that speaks the transmission phase itself with
/// [`super::Replies`]: a shard that forwards to a volume's new owner. `patience` bounds every wait
/// here and does not outlive it: the socket is handed out blocking and without timeouts.
pub fn dial(uri: &Uri, contexts: &[String], patience: Duration) -> Result<(Agreed, OwnedFd)> {
    let (agreed, stream) = connect(uri, contexts, patience)?;
    let socket = stream
        .into_fd()
        .map_err(|e| Error::io(format!("{uri}: set up the socket"), e))?;
    Ok((agreed, socket))
}

/// What the server says about an export to a person; empty if nothing.
pub fn describe(uri: &Uri, patience: Duration) -> Result<String> {
    let stream = Stream::connect(&uri.address, patience)
        .map_err(|e| io_error(format!("connect to {uri}"), e))?;
    negotiate::describe(&mut &stream, &uri.export).map_err(|e| e.within(uri))
}

pub(super) fn connect(
    uri: &Uri,
    contexts: &[String],
    patience: Duration,
) -> Result<(Agreed, Stream)> {
    let stream = Stream::connect(&uri.address, patience)
        .map_err(|e| io_error(format!("connect to {uri}"), e))?;
    let agreed = negotiate(&mut &stream, &uri.export, contexts).map_err(|e| e.within(uri))?;
    Ok((agreed, stream))
}

/// An I/O error with what was being done; a timeout of the socket becomes `Timeout`.
pub(super) fn io_error(what: String, e: io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::new(
            ErrorKind::Timeout,
            format!("{what}: the server made no progress in time"),
        ),
        _ => Error::io(what, e),
    }
}

#[derive(Debug)]
pub(super) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Read for &Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(s) => (&*s).read(buf),
            Stream::Tcp(s) => (&*s).read(buf),
        }
    }
}

impl Write for &Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(s) => (&*s).write(buf),
            Stream::Tcp(s) => (&*s).write(buf),
        }
    }
    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Stream::Unix(s) => (&*s).write_vectored(bufs),
            Stream::Tcp(s) => (&*s).write_vectored(bufs),
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream {
    fn into_fd(self) -> io::Result<OwnedFd> {
        Ok(match self {
            Stream::Unix(s) => {
                s.set_read_timeout(None)?;
                s.set_write_timeout(None)?;
                s.into()
            }
            Stream::Tcp(s) => {
                s.set_read_timeout(None)?;
                s.set_write_timeout(None)?;
                s.into()
            }
        })
    }

    fn connect(address: &Address, patience: Duration) -> io::Result<Stream> {
        match address {
            Address::Unix(path) => {
                let s = UnixStream::connect(path)?;
                s.set_read_timeout(Some(patience))?;
                s.set_write_timeout(Some(patience))?;
                Ok(Stream::Unix(s))
            }
            Address::Tcp(host, port) => {
                let mut last = io::Error::from(io::ErrorKind::NotFound);
                for address in (host.as_str(), *port).to_socket_addrs()? {
                    match TcpStream::connect_timeout(&address, patience) {
                        Ok(s) => {
                            s.set_nodelay(true)?;
                            s.set_read_timeout(Some(patience))?;
                            s.set_write_timeout(Some(patience))?;
                            return Ok(Stream::Tcp(s));
                        }
                        Err(e) => last = e,
                    }
                }
                Err(last)
            }
        }
    }
}
