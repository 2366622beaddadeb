//! A new connection up to the point where a shard can have it: the handshake on tokio, under a
//! deadline, and the socket made ready for io_uring.
//!
//! ```text
//! listener ─► accept(stream, exports, …) ─► Accepted { agreed, socket, surplus } ─► home shard
//!               (10 s, all told)
//! ```

use std::os::fd::OwnedFd;
use std::time::Duration;

use block::{Error, ErrorKind, Result};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::export::{Exports, Negotiated};
use crate::handshake::{Event, Handshake, Tls};

/// Time for a whole handshake, whatever the client does with it. A client that is only slow needs
/// a few round trips; one that holds its connection open to wear us down loses it.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// How long GO may wait for an export that is expected: shorter than our own client's patience, so that
/// it hears a refusal and not silence.
const ARRIVAL_DEADLINE: Duration = Duration::from_secs(4);

/// Send buffer of a unix socket: the default of 208 KiB makes large reads wait for the client over
/// and over. The kernel clips it to `wmem_max`.
const UNIX_SEND_BUFFER: usize = 4 << 20;

/// Bytes of one receive. A handshake fits; what a hasty client sends after it is the surplus.
const RECEIVE_BYTES: usize = 4096;

/// A connection in the transmission phase.
#[derive(Debug)]
pub struct Accepted {
    /// What was agreed.
    pub agreed: Box<Negotiated>,
    /// The connected socket: blocking, as io_uring wants it, which on a nonblocking one would
    /// answer EAGAIN instead of waiting.
    pub socket: OwnedFd,
    /// Bytes that came with the end of the handshake: the first requests. To be fed to the
    /// session before anything is received.
    pub surplus: Vec<u8>,
}

/// A socket of tokio's that NBD is spoken on.
pub trait Socket: AsyncRead + AsyncWrite + Unpin + Send {
    /// Leave tokio: blocking again, and set up for small replies and large reads.
    fn into_fd(self) -> std::io::Result<OwnedFd>;
}

impl Socket for UnixStream {
    fn into_fd(self) -> std::io::Result<OwnedFd> {
        let socket = self.into_std()?;
        socket.set_nonblocking(false)?;
        setsockopt(&socket, sockopt::SndBuf, &UNIX_SEND_BUFFER)?;
        Ok(socket.into())
    }
}

impl Socket for TcpStream {
    fn into_fd(self) -> std::io::Result<OwnedFd> {
        let socket = self.into_std()?;
        socket.set_nonblocking(false)?;
        socket.set_nodelay(true)?;
        // a client that lost power would otherwise hold its place for ever
        setsockopt(&socket, sockopt::KeepAlive, &true)?;
        Ok(socket.into())
    }
}

/// Negotiate on a fresh connection. Fails with `Timeout` past the deadline, `Protocol` if the
/// client broke it, `Disconnected` if it went away or was content with a listing.
pub async fn accept<S: Socket>(
    mut stream: S,
    exports: &(dyn Exports + Sync),
    deadline: Duration,
) -> Result<Accepted> {
    let (agreed, surplus) = tokio::time::timeout(deadline, negotiate(&mut stream, exports))
        .await
        .map_err(|_| {
            Error::new(
                ErrorKind::Timeout,
                format!(
                    "NBD handshake: not finished after {} s",
                    deadline.as_secs_f32()
                ),
            )
        })??;
    let socket = stream
        .into_fd()
        .map_err(|e| Error::io("NBD handshake: set up the socket", e))?;
    Ok(Accepted {
        agreed,
        socket,
        surplus,
    })
}

async fn negotiate<S: Socket>(
    stream: &mut S,
    exports: &(dyn Exports + Sync),
) -> Result<(Box<Negotiated>, Vec<u8>)> {
    let send = |e| Error::io("NBD handshake: send to the client", e);
    let mut handshake = Handshake::new(Tls::Absent);
    stream
        .write_all(&Handshake::greeting())
        .await
        .map_err(send)?;
    let mut buffer = [0; RECEIVE_BYTES];
    let mut out = Vec::new();
    loop {
        let n = stream
            .read(&mut buffer)
            .await
            .map_err(|e| Error::io("NBD handshake: receive from the client", e))?;
        if n == 0 {
            return Err(gone("the client closed the connection"));
        }
        let mut input = &buffer[..n];
        loop {
            let event = handshake.feed(&mut input, exports, &mut out);
            // one option's replies at a time, so that a client that does not read them holds no
            // more than those
            stream.write_all(&out).await.map_err(send)?;
            out.clear();
            match event {
                Event::NeedMore => break,
                Event::Send => {}
                Event::Later(name) => {
                    if let Some(arrival) = exports.arrival(&name)
                        && tokio::time::timeout(ARRIVAL_DEADLINE, arrival)
                            .await
                            .is_err()
                    {
                        handshake.wait_no_longer();
                    }
                }
                Event::Done(agreed) => return Ok((agreed, input.to_vec())),
                Event::Aborted => return Err(gone("the client ended it")),
                Event::Broken(breach) => {
                    return Err(Error::new(
                        ErrorKind::Protocol,
                        format!("NBD handshake: {breach}"),
                    ));
                }
                Event::StartTls => {
                    return Err(Error::new(
                        ErrorKind::Broken,
                        "NBD handshake: TLS began where none is offered",
                    ));
                }
            }
        }
    }
}

fn gone(how: &str) -> Error {
    Error::new(ErrorKind::Disconnected, format!("NBD handshake: {how}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Export;
    use std::io::{Read, Write};

    struct One;

    impl Exports for One {
        fn names(&self) -> Vec<String> {
            vec!["vm1".to_owned()]
        }
        fn find(&self, name: &str) -> Option<Export> {
            (name == "vm1").then(|| Export::new("vm1", 4096))
        }
    }

    fn option(number: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = b"IHAVEOPT".to_vec();
        bytes.extend(number.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        bytes
    }

    fn block_on<F: Future>(f: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(f)
    }

    /// A client may send its first requests in one go with the last option. They are no part of
    /// the handshake and must not get lost in its buffer.
    #[test]
    fn the_socket_is_handed_on_blocking_and_with_the_first_requests() {
        block_on(async {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let theirs = theirs.into_std().unwrap();
            theirs.set_nonblocking(false).unwrap();
            let hello = [&[0, 0, 0, 3][..], &option(1, b"vm1"), b"request"].concat();
            (&theirs).write_all(&hello).unwrap();
            let accepted = accept(ours, &One, HANDSHAKE_DEADLINE).await.unwrap();
            assert_eq!(accepted.agreed.export.size, 4096);
            assert_eq!(accepted.surplus, b"request");
            let flags = nix::fcntl::fcntl(&accepted.socket, nix::fcntl::FcntlArg::F_GETFL).unwrap();
            assert_eq!(flags & nix::libc::O_NONBLOCK, 0);
            let mut said = [0; 18 + 10];
            (&theirs).read_exact(&mut said).unwrap();
            assert_eq!(&said[..8], b"NBDMAGIC");
        });
    }

    /// Slow loris: one byte at a time, each in good time, and the whole never. The deadline is for
    /// the handshake, not for the next byte.
    #[test]
    fn a_client_that_dribbles_is_cut_off_at_the_deadline() {
        block_on(async {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let dribble = tokio::spawn(async move {
                let hello = [&[0, 0, 0, 3][..], &option(99, &[0; 4000])].concat();
                for byte in hello {
                    if theirs.write_all(&[byte]).await.is_err() {
                        return true;
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                false
            });
            let deadline = Duration::from_millis(100);
            let error = accept(ours, &One, deadline).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Timeout);
            assert!(dribble.await.unwrap(), "the connection is closed to it");
        });
    }

    #[test]
    fn a_client_that_never_reads_is_cut_off_at_the_deadline() {
        block_on(async {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let theirs = theirs.into_std().unwrap();
            let mut hello = vec![0, 0, 0, 3];
            for _ in 0..60 {
                hello.extend(option(3, &[]));
            }
            (&theirs).write_all(&hello).unwrap();
            struct Many;
            impl Exports for Many {
                fn names(&self) -> Vec<String> {
                    (0..1000).map(|i| format!("vm{i}")).collect()
                }
                fn find(&self, _: &str) -> Option<Export> {
                    None
                }
            }
            let error = accept(ours, &Many, Duration::from_millis(100))
                .await
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Timeout);
        });
    }

    #[test]
    fn the_ways_out_are_told_apart() {
        for (hello, kind) in [
            (
                [&[0, 0, 0, 3][..], &option(2, &[])].concat(),
                ErrorKind::Disconnected,
            ),
            (b"GET / HTTP/1.1\r\n\r\n".to_vec(), ErrorKind::Protocol),
            (vec![0, 0], ErrorKind::Disconnected),
        ] {
            block_on(async {
                let (ours, mut theirs) = UnixStream::pair().unwrap();
                theirs.write_all(&hello).await.unwrap();
                theirs.shutdown().await.unwrap();
                let error = accept(ours, &One, HANDSHAKE_DEADLINE).await.unwrap_err();
                assert_eq!(error.kind(), kind, "{error}");
            });
        }
    }
}
