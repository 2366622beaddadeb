//! A connection: frames in, frames out, and nothing about what they mean.
//!
//! Sending is queued: [`Link::send`] encodes into a bounded queue, [`Link::write_loop`] empties it.
//! The loop must be polled beside whatever sends. Receiving never stops for sending on the source's
//! side, so two full sockets cannot wait for each other.

use block::{Epoch, Error, ErrorKind, Generation, Result, Transport};
use std::cell::{Cell, RefCell};
use tokio::sync::{Mutex, mpsc};
use wire::{Decoder, Encoder, FailureKind, Header, Hello, Message};

/// Encoded frames that wait for the socket, at most: while one is sent the next are ready. Four of
/// the largest size are 4 MiB a connection.
const QUEUE_FRAMES: usize = 4;

/// Frames smaller than this are sent together with those that follow.
const COALESCE_BYTES: usize = 64 << 10;

/// The sending half of a connection, and the way to the transport for the receiving half.
pub(crate) struct Link<T> {
    transport: T,
    encoder: RefCell<Encoder>,
    generation: Cell<Generation>,
    queue: mpsc::Sender<Vec<u8>>,
    queued: Mutex<mpsc::Receiver<Vec<u8>>>,
    /// Buffers to encode into.
    spare: RefCell<Vec<Vec<u8>>>,
    sent: Cell<u64>,
    /// A buffer is with the transport.
    writing: Cell<bool>,
    /// Buffers that the transport took.
    written: Cell<u64>,
}

fn closed() -> Error {
    Error::new(ErrorKind::Disconnected, "the replication link has closed")
}

impl<T: Transport> Link<T> {
    pub(crate) fn new(transport: T, encoder: Encoder, generation: Generation) -> Link<T> {
        let (queue, queued) = mpsc::channel(QUEUE_FRAMES);
        Link {
            transport,
            encoder: RefCell::new(encoder),
            generation: Cell::new(generation),
            queue,
            queued: Mutex::new(queued),
            spare: RefCell::new(Vec::with_capacity(QUEUE_FRAMES + 1)),
            sent: Cell::new(0),
            writing: Cell::new(false),
            written: Cell::new(0),
        }
    }

    /// Whether the transport is being written to, and how often it has been.
    pub(crate) fn writes(&self) -> (bool, u64) {
        (self.writing.get(), self.written.get())
    }

    /// End the connection.
    pub(crate) fn end(&self) {
        self.transport.end();
    }

    /// Bytes put on the wire so far.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.get()
    }

    pub(crate) fn set_generation(&self, generation: Generation) {
        self.generation.set(generation);
    }

    pub(crate) fn set_version(&self, version: u8) {
        self.encoder.borrow_mut().set_version(version);
    }

    /// Queue a frame.
    pub(crate) async fn send(&self, epoch: Epoch, message: &Message<'_>) -> Result<()> {
        let slot = self.queue.reserve().await.map_err(|_| closed())?;
        slot.send(self.encode(epoch, message).0);
        Ok(())
    }

    /// Wait until the queue has room for two frames: what a chunk may become.
    pub(crate) async fn room(&self) -> Result<Room<'_, T>> {
        let slots = self.queue.reserve_many(2).await.map_err(|_| closed())?;
        Ok(Room { link: self, slots })
    }

    /// Number a frame. It must be queued before anything else happens.
    fn encode(&self, epoch: Epoch, message: &Message<'_>) -> (Vec<u8>, u32) {
        let mut buf = self.spare.borrow_mut().pop().unwrap_or_default();
        buf.clear();
        let mut encoder = self.encoder.borrow_mut();
        let crc = encoder.encode(self.generation.get(), epoch, message, &mut buf);
        self.sent.set(self.sent.get() + buf.len() as u64);
        (buf, crc)
    }

    /// Empty the queue into the transport until that fails.
    pub(crate) async fn write_loop(&self) -> Result<()> {
        let mut queued = self.queued.lock().await;
        loop {
            let mut buf = queued.recv().await.ok_or_else(closed)?;
            while buf.len() < COALESCE_BYTES {
                let Ok(next) = queued.try_recv() else { break };
                buf.extend_from_slice(&next);
                self.recycle(next);
            }
            self.write(buf).await?;
        }
    }

    /// Send what is queued and return.
    pub(crate) async fn flush(&self) -> Result<()> {
        let mut queued = self.queued.lock().await;
        while let Ok(buf) = queued.try_recv() {
            self.write(buf).await?;
        }
        Ok(())
    }

    async fn write(&self, buf: Vec<u8>) -> Result<()> {
        self.writing.set(true);
        let (result, buf) = self.transport.send(buf).await;
        self.writing.set(false);
        self.written.set(self.written.get() + 1);
        result?;
        self.recycle(buf);
        Ok(())
    }

    fn recycle(&self, buf: Vec<u8>) {
        let mut spare = self.spare.borrow_mut();
        if spare.len() <= QUEUE_FRAMES {
            spare.push(buf);
        }
    }

    /// Step to the next frame, receiving as needed. Not to be dropped halfway: what was received
    /// would be lost.
    pub(crate) async fn next(&self, decoder: &mut Decoder) -> Result<Header> {
        loop {
            if let Some(header) = decoder.advance()? {
                return Ok(header);
            }
            let (result, buf) = self.transport.recv(decoder.take_buffer()).await;
            decoder.give_buffer(buf);
            result?;
        }
    }
}

/// Room in the queue, to encode without waiting.
pub(crate) struct Room<'a, T> {
    link: &'a Link<T>,
    slots: mpsc::PermitIterator<'a, Vec<u8>>,
}

impl<T: Transport> Room<'_, T> {
    /// Queue a frame; the answer is the CRC of its body.
    pub(crate) fn send(&mut self, epoch: Epoch, message: &Message<'_>) -> Result<u32> {
        let slot = self.slots.next().ok_or_else(|| {
            Error::new(
                ErrorKind::Broken,
                "more frames were sent than there was room for",
            )
        })?;
        let (buf, crc) = self.link.encode(epoch, message);
        slot.send(buf);
        Ok(crc)
    }
}

/// An accepted connection whose peer has introduced itself.
pub struct Incoming<T> {
    pub(crate) link: Link<T>,
    pub(crate) decoder: Decoder,
    /// Who it is.
    pub hello: Hello,
    /// The source's generation.
    pub generation: Generation,
    /// The source's newest epoch.
    pub epoch: Epoch,
}

/// Receive the introduction of a new connection. The caller bounds the time that it may take.
pub async fn greet<T: Transport>(transport: T) -> Result<Incoming<T>> {
    let mut decoder = Decoder::new();
    let link = Link::new(transport, Encoder::new(wire::SessionId(0)), Generation(0));
    let header = link.next(&mut decoder).await?;
    *link.encoder.borrow_mut() = Encoder::new(header.session);
    let Message::Hello(hello) = decoder.message(&header)? else {
        return Err(Error::new(
            ErrorKind::Protocol,
            "the replication peer did not introduce itself",
        ));
    };
    Ok(Incoming {
        link,
        decoder,
        hello,
        generation: header.generation,
        epoch: header.epoch,
    })
}

impl<T: Transport> Incoming<T> {
    /// Say why the connection will not be served, and end it.
    pub async fn refuse(self, error: &Error) {
        tell(&self.link, Epoch(0), error).await;
    }
}

/// Tell the peer why the connection ends; if it does not hear, that is its own trouble.
pub(crate) async fn tell<T: Transport>(link: &Link<T>, epoch: Epoch, error: &Error) {
    if link.flush().await.is_ok() {
        let message = Message::Error {
            kind: FailureKind::of(error),
            sentence: &error.to_string(),
        };
        if link.send(epoch, &message).await.is_ok() {
            let _ = link.flush().await;
        }
    }
}
