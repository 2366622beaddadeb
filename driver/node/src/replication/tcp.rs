//! The replication connection: a TCP stream on a mover's ring, and the mover's clock.

use block::{Clock, Error, ErrorKind, Nanos, Result, Transport};
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio_uring::buf::BoundedBuf;
use tokio_uring::net::TcpStream;

/// A connection to another node's mover. Clones share it, so that one can break what another uses.
#[derive(Clone)]
pub struct Tcp {
    stream: Rc<TcpStream>,
    peer: SocketAddr,
}

impl Tcp {
    /// Connect within `deadline`.
    pub async fn connect(peer: SocketAddr, deadline: Duration) -> Result<Tcp> {
        let stream = tokio::time::timeout(deadline, TcpStream::connect(peer))
            .await
            .map_err(|_| {
                let e =
                    format!("connect to {peer}: no answer within {deadline:?}; is the node up?");
                Error::new(ErrorKind::Timeout, e)
            })?
            .map_err(|e| Error::io(format!("connect to {peer}"), e))?;
        Tcp::new(stream, peer)
    }

    /// A stream that was accepted from, or connected to, `peer`.
    pub fn new(stream: TcpStream, peer: SocketAddr) -> Result<Tcp> {
        // Small frames (the last ones of a cutover) must not wait for company.
        stream
            .set_nodelay(true)
            .map_err(|e| Error::io(format!("set TCP_NODELAY towards {peer}"), e))?;
        Ok(Tcp {
            stream: Rc::new(stream),
            peer,
        })
    }

    /// End the connection under whoever waits for it.
    pub fn cut(&self) {
        // It may have ended by itself.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Who is on the other side.
    #[must_use]
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    fn failed(&self, what: &str, e: io::Error) -> Error {
        Error::io(format!("{what} {}", self.peer), e)
    }
}

impl Transport for Tcp {
    async fn send(&self, buf: Vec<u8>) -> (Result<()>, Vec<u8>) {
        let (result, buf) = self.stream.write_all(buf).await;
        (result.map_err(|e| self.failed("send to", e)), buf)
    }

    async fn recv(&self, buf: Vec<u8>) -> (Result<()>, Vec<u8>) {
        let have = buf.len();
        let (result, slice) = self.stream.read(buf.slice(have..)).await;
        let result = match result {
            Ok(0) => Err(Error::new(
                ErrorKind::Disconnected,
                format!("{} has closed the connection", self.peer),
            )),
            Ok(_) => Ok(()),
            Err(e) => Err(self.failed("receive from", e)),
        };
        (result, slice.into_inner())
    }

    fn end(&self) {
        self.cut();
    }
}

/// Monotonic time of a mover's thread.
#[derive(Clone, Copy)]
pub struct MoverClock(Instant);

impl MoverClock {
    /// A clock that begins now.
    #[must_use]
    pub fn start() -> MoverClock {
        MoverClock(Instant::now())
    }
}

impl Clock for MoverClock {
    fn now(&self) -> Nanos {
        Nanos(u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    async fn sleep(&self, d: Duration) {
        tokio::time::sleep(d).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_uring::net::TcpListener;

    #[test]
    fn bytes_pass_both_ways_and_a_cut_is_noticed() {
        tokio_uring::start(async {
            let listener = TcpListener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
            let address = listener.local_addr().unwrap();
            let there = Tcp::connect(address, Duration::from_secs(5));
            let (there, here) = tokio::join!(there, listener.accept());
            let (stream, peer) = here.unwrap();
            let (there, here) = (there.unwrap(), Tcp::new(stream, peer).unwrap());
            let (result, _) = there.send(b"hello".to_vec()).await;
            result.unwrap();
            let mut buf = Vec::with_capacity(16);
            buf.extend_from_slice(b"> ");
            while buf.len() < 7 {
                let (result, back) = here.recv(buf).await;
                result.unwrap();
                buf = back;
            }
            assert_eq!(buf, b"> hello");
            let other = here.clone();
            let waiting = async {
                let (result, _) = here.recv(Vec::with_capacity(16)).await;
                result.unwrap_err().kind()
            };
            let cut = async {
                tokio::time::sleep(Duration::from_millis(10)).await;
                other.cut();
            };
            let (kind, ()) = tokio::join!(waiting, cut);
            assert_eq!(kind, ErrorKind::Disconnected);
        });
    }
}
