//! A blocking client over a unix or TCP socket. One request at a time through [`Client`], or many
//! at once after [`Client::split`]: one thread sends, another receives, and the receipts name the
//! requests by cookie, in whatever order the server finished them.

use std::collections::HashMap;
use std::io::{self, IoSlice, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use block::{Error, ErrorKind, Result};

use super::dial::{self, Stream, io_error};
use super::{Agreed, Arrival, Replies, Uri};
use crate::codec::{Command, CommandFlags, Cookie, NbdError, RequestHeader};

/// Bytes of the receive buffer. Larger data goes straight to where it belongs.
const RECEIVE_BYTES: usize = 64 << 10;

/// Longest piece of a zeroing or trim: what the servers that know no larger ones take.
const PIECE_MAX: u64 = 1 << 30;

/// Extents of one meta context as `(context id, bytes, flags)`, in order within a context.
pub type Extents = Vec<(u32, u32, u32)>;

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Which request.
    pub cookie: Cookie,
    /// Success, or the server's error.
    pub result: Result<(), NbdError>,
    /// The data of a read that succeeded, all of it; empty otherwise.
    pub data: Vec<u8>,
    /// The extents of a block status that succeeded.
    pub extents: Extents,
}

/// What both halves of a connection share.
#[derive(Debug)]
struct Link {
    stream: Stream,
    replies: Mutex<Replies>,
    name: String,
}

impl Link {
    fn replies(&self) -> MutexGuard<'_, Replies> {
        // a panic elsewhere leaves the table as it was between two calls: still true
        self.replies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(&self, what: &str, e: io::Error) -> Error {
        io_error(format!("{}: {what}", self.name), e)
    }
}

/// The half that sends.
#[derive(Debug)]
pub struct Sender {
    link: Arc<Link>,
    last: u64,
}

impl Sender {
    /// The cookie of the next request that is sent.
    #[must_use]
    pub fn next_cookie(&self) -> Cookie {
        Cookie(self.last + 1)
    }

    /// Send one request and return its cookie. `payload` is what a write writes and empty for all
    /// else. Fails with `Busy`, and sends nothing, while [`super::OUTSTANDING_MAX`] are out. After
    /// any other failure the connection is lost.
    pub fn send(
        &mut self,
        command: Command,
        flags: CommandFlags,
        offset: u64,
        len: u32,
        payload: &[u8],
    ) -> Result<Cookie> {
        let due = if command == Command::Write {
            len as usize
        } else {
            0
        };
        assert_eq!(payload.len(), due, "a write has its length in payload");
        let cookie = self.next_cookie();
        let header = RequestHeader {
            flags,
            command,
            cookie,
            offset,
            len,
        };
        if command != Command::Disconnect && !self.link.replies().expect(&header) {
            return Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "{}: too many requests are out, receive some",
                    self.link.name
                ),
            ));
        }
        self.last += 1;
        self.write_all(&header.encode(), payload)
            .map_err(|e| self.link.error("send a request", e))?;
        Ok(cookie)
    }

    /// Tell the server that nothing more comes.
    pub fn goodbye(&mut self) -> Result<()> {
        self.send(Command::Disconnect, CommandFlags::NONE, 0, 0, &[])
            .map(|_| ())
    }

    fn write_all(&self, mut head: &[u8], mut payload: &[u8]) -> io::Result<()> {
        while !head.is_empty() || !payload.is_empty() {
            let parts = [IoSlice::new(head), IoSlice::new(payload)];
            match (&self.link.stream).write_vectored(&parts) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    let of_head = n.min(head.len());
                    head = &head[of_head..];
                    payload = &payload[n - of_head..];
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// The half that receives.
#[derive(Debug)]
pub struct Receiver {
    link: Arc<Link>,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Reads and block statuses of which a part has come.
    partial: HashMap<Cookie, (Vec<u8>, Extents)>,
}

impl Receiver {
    /// The next request to end, in whatever order. Blocks; fails with `Timeout` if the server is
    /// silent for too long, with `Protocol` if it says what makes no sense. After a failure the
    /// connection is lost.
    pub fn receive(&mut self) -> Result<Receipt> {
        loop {
            let mut input = &self.buffer[self.start..self.end];
            let arrival = self.link.replies().next(&mut input);
            self.start = self.end - input.len();
            match arrival {
                Arrival::NeedMore => self.fill()?,
                Arrival::Data { cookie, at, len } => self.bulk(cookie, at, len)?,
                Arrival::Bulk { .. } => {
                    return Err(self.broken("data that was announced to nobody"));
                }
                Arrival::Zeroes { cookie, at, len } => {
                    self.place(cookie, at, len).fill(0);
                }
                Arrival::Extent {
                    cookie,
                    context,
                    len,
                    flags,
                } => {
                    let (_, extents) = self.partial.entry(cookie).or_default();
                    extents.push((context, len, flags));
                }
                Arrival::Done { cookie, result } => {
                    let (data, extents) = self.partial.remove(&cookie).unwrap_or_default();
                    let keep = result.is_ok();
                    return Ok(Receipt {
                        cookie,
                        result,
                        data: if keep { data } else { Vec::new() },
                        extents: if keep { extents } else { Vec::new() },
                    });
                }
                Arrival::Broken(breach) => return Err(self.broken(&breach.to_string())),
            }
        }
    }

    fn place(&mut self, cookie: Cookie, at: u32, len: u32) -> &mut [u8] {
        // inside what was asked for: the replies have seen to that
        let (data, _) = self.partial.entry(cookie).or_default();
        let end = at as usize + len as usize;
        if data.len() < end {
            data.resize(end, 0);
        }
        &mut data[at as usize..end]
    }

    /// Receive data to its place, past the buffer once that is empty.
    fn bulk(&mut self, cookie: Cookie, at: u32, len: u32) -> Result<()> {
        self.place(cookie, at, len);
        let Receiver {
            link,
            buffer,
            start,
            end,
            partial,
        } = self;
        let Some((data, _)) = partial.get_mut(&cookie) else {
            return Ok(());
        };
        let place = &mut data[at as usize..][..len as usize];
        let mut input = &buffer[*start..*end];
        let mut missing = link.replies().take_bulk(&mut input, place);
        *start = *end - input.len();
        while missing > 0 {
            let from = place.len() - missing as usize;
            let n = receive(link, &mut place[from..])?;
            missing = link.replies().bulk_landed(n as u32);
        }
        Ok(())
    }

    fn fill(&mut self) -> Result<()> {
        debug_assert_eq!(self.start, self.end, "all input was consumed");
        self.end = receive(&self.link, &mut self.buffer)?;
        self.start = 0;
        Ok(())
    }

    fn broken(&self, what: &str) -> Error {
        Error::new(ErrorKind::Protocol, format!("{}: {what}", self.link.name))
    }
}

/// At least one byte from the server.
fn receive(link: &Link, buf: &mut [u8]) -> Result<usize> {
    loop {
        match (&link.stream).read(buf) {
            Ok(0) => {
                return Err(Error::new(
                    ErrorKind::Disconnected,
                    format!("{}: the server closed the connection", link.name),
                ));
            }
            Ok(n) => return Ok(n),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(link.error("receive a reply", e)),
        }
    }
}

/// One connection, one request at a time.
#[derive(Debug)]
pub struct Client {
    agreed: Agreed,
    sender: Sender,
    receiver: Receiver,
}

impl Client {
    /// Connect and negotiate, with those of `contexts` that the server has. `patience` is how long
    /// the server may be silent, now and in every later call.
    pub fn connect(uri: &Uri, contexts: &[String], patience: Duration) -> Result<Client> {
        let (agreed, stream) = dial::connect(uri, contexts, patience)?;
        let link = Arc::new(Link {
            stream,
            replies: Mutex::new(Replies::new(agreed.structured)),
            name: uri.to_string(),
        });
        Ok(Client {
            agreed,
            sender: Sender {
                link: Arc::clone(&link),
                last: 0,
            },
            receiver: Receiver {
                link,
                buffer: vec![0; RECEIVE_BYTES],
                start: 0,
                end: 0,
                partial: HashMap::new(),
            },
        })
    }

    /// What the server agreed to.
    #[must_use]
    pub fn agreed(&self) -> &Agreed {
        &self.agreed
    }

    /// The two halves, for two threads.
    #[must_use]
    pub fn split(self) -> (Sender, Receiver) {
        (self.sender, self.receiver)
    }

    /// Fill `buf` from `offset`.
    pub fn read(&mut self, mut offset: u64, buf: &mut [u8]) -> Result<()> {
        for piece in buf.chunks_mut(self.agreed.payload_max as usize) {
            let len = piece.len() as u32;
            let receipt = self.call(Command::Read, CommandFlags::NONE, offset, len, &[])?;
            piece.copy_from_slice(&receipt.data);
            offset += u64::from(len);
        }
        Ok(())
    }

    /// Write `data` at `offset`; with `fua` it is durable on return.
    pub fn write(&mut self, mut offset: u64, data: &[u8], fua: bool) -> Result<()> {
        let flags = if fua {
            CommandFlags::FUA
        } else {
            CommandFlags::NONE
        };
        for piece in data.chunks(self.agreed.payload_max as usize) {
            let len = piece.len() as u32;
            self.call(Command::Write, flags, offset, len, piece)?;
            offset += u64::from(len);
        }
        Ok(())
    }

    /// Make a range read as zeroes; `flags` may have NO_HOLE, FAST_ZERO and FUA.
    pub fn zero(&mut self, offset: u64, len: u64, flags: CommandFlags) -> Result<()> {
        self.pieces(Command::WriteZeroes, flags, offset, len)
    }

    /// Tell that a range's content is no longer needed.
    pub fn trim(&mut self, offset: u64, len: u64) -> Result<()> {
        self.pieces(Command::Trim, CommandFlags::NONE, offset, len)
    }

    /// Ask for a range to be prefetched.
    pub fn cache(&mut self, offset: u64, len: u64) -> Result<()> {
        self.pieces(Command::Cache, CommandFlags::NONE, offset, len)
    }

    /// Make every acknowledged write durable.
    pub fn flush(&mut self) -> Result<()> {
        self.call(Command::Flush, CommandFlags::NONE, 0, 0, &[])
            .map(|_| ())
    }

    /// Extents from `offset` in every context that was agreed. The server may stop short of `len`;
    /// with `one` it stops after the first extent.
    pub fn block_status(&mut self, offset: u64, len: u32, one: bool) -> Result<Extents> {
        let flags = if one {
            CommandFlags::REQ_ONE
        } else {
            CommandFlags::NONE
        };
        self.call(Command::BlockStatus, flags, offset, len, &[])
            .map(|receipt| receipt.extents)
    }

    /// Say goodbye.
    pub fn close(mut self) -> Result<()> {
        self.sender.goodbye()
    }

    fn pieces(
        &mut self,
        command: Command,
        flags: CommandFlags,
        mut offset: u64,
        mut len: u64,
    ) -> Result<()> {
        while len > 0 {
            let piece = len.min(PIECE_MAX);
            self.call(command, flags, offset, piece as u32, &[])?;
            offset += piece;
            len -= piece;
        }
        Ok(())
    }

    fn call(
        &mut self,
        command: Command,
        flags: CommandFlags,
        offset: u64,
        len: u32,
        payload: &[u8],
    ) -> Result<Receipt> {
        let cookie = self.sender.send(command, flags, offset, len, payload)?;
        let receipt = self.receiver.receive()?;
        assert_eq!(receipt.cookie, cookie, "one request was out");
        match receipt.result {
            Ok(()) => Ok(receipt),
            Err(e) => Err(Error::errno(
                format!(
                    "{}: {command:?} of {len} bytes at {offset}: the server answered {e}",
                    self.sender.link.name
                ),
                e.errno(),
            )),
        }
    }
}
