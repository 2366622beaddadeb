//! Fixed newstyle negotiation, the server's side, as a pure state machine: bytes in, bytes and
//! events out.
//!
//! ```text
//! S: NBDMAGIC IHAVEOPT flags:2
//! C: flags:4
//! C: IHAVEOPT option:4 length:4 data        again and again
//! S: magic:8 option:4 reply:4 length:4 data  one or more to each
//!    ... until GO or EXPORT_NAME (→ Done), ABORT, STARTTLS, or a breach
//! ```
//!
//! A stranger talks to this code, so nothing in it grows by what a client claims: an option's data
//! is kept only as it arrives and only up to [`OPTION_MAX`], all that a client may send before it
//! has an export is [`BYTES_MAX`], in at most [`OPTIONS_MAX`] options. The time it may take is the
//! caller's to bound.

mod meta;
mod option;
pub(crate) mod wire;

use self::wire::{EXPORT_NAME, FIXED_NEWSTYLE, NBD_MAGIC, NO_ZEROES, OPTION_MAGIC};
use crate::export::{Export, Exports, MetaContext, Negotiated};

/// Data of one option that is looked at: room for an export name of the 4 KiB that the
/// specification allows and a dozen meta context queries as long.
pub const OPTION_MAX: usize = 64 << 10;
/// All bytes of one handshake: a few options of the largest size.
pub const BYTES_MAX: usize = 256 << 10;
/// Options of one handshake. libnbd and QEMU send fewer than ten.
pub const OPTIONS_MAX: u32 = 64;
/// Longest string of the protocol.
pub const STRING_MAX: usize = 4096;
/// Meta contexts of one session: the allocation and more checkpoints than backup tools keep.
pub const CONTEXTS_MAX: usize = 16;

/// Bytes of the server's greeting.
pub const GREETING_BYTES: usize = 18;

/// Zeroes after the answer to EXPORT_NAME that a client can forgo.
const EXPORT_NAME_ZEROES: usize = 124;

/// Whether the connection may be, must be or has been encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    /// There is none: STARTTLS is unsupported.
    Absent,
    /// A client may have it.
    Offered,
    /// Nothing is told or served without it.
    Required,
    /// It is running.
    Active,
}

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// All input is consumed.
    NeedMore,
    /// One option was answered: send what is in `out`, then go on.
    Send,
    /// GO asks for the export of this name, which is expected. It is answered by the next call, which
    /// needs no more input: let its [`Exports::arrival`] end, or call [`Handshake::wait_no_longer`].
    Later(String),
    /// Send `out`, then encrypt the connection and call [`Handshake::secured`]. Input that came
    /// after the option was sent in the clear by nobody knows whom: with any left, close.
    StartTls,
    /// Send `out`; what follows is transmission, beginning with the input that is left.
    Done(Box<Negotiated>),
    /// Send `out` and close: the client asked for it.
    Aborted,
    /// Close.
    Broken(Breach),
}

/// Why a handshake cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breach {
    /// Client flags that we did not offer.
    ClientFlags(u32),
    /// Not the magic of an option.
    Magic(u64),
    /// An option other than EXPORT_NAME from a client that does not know their replies.
    NotFixed(u32),
    /// EXPORT_NAME cannot be refused in any other way than this.
    NoSuchExport,
    /// EXPORT_NAME where TLS is required.
    NotEncrypted,
    /// More than [`OPTIONS_MAX`] options.
    TooManyOptions,
    /// More than [`BYTES_MAX`] bytes, sent or announced.
    TooManyBytes,
}

impl std::fmt::Display for Breach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Breach::ClientFlags(flags) => write!(f, "unknown client flags {flags:#x}"),
            Breach::Magic(m) => write!(f, "an option begins with {m:#018x}, which is no NBD magic"),
            Breach::NotFixed(o) => write!(f, "option {o} without fixed newstyle negotiation"),
            Breach::NoSuchExport => f.write_str("EXPORT_NAME of an export that does not exist"),
            Breach::NotEncrypted => f.write_str("EXPORT_NAME before STARTTLS"),
            Breach::TooManyOptions => write!(f, "more than {OPTIONS_MAX} options"),
            Breach::TooManyBytes => write!(f, "more than {BYTES_MAX} bytes of options"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    ClientFlags,
    Header,
    Data {
        option: u32,
        len: usize,
    },
    /// Throwing away the data of an option that is too long to be looked at.
    Skip {
        option: u32,
        left: usize,
    },
}

/// One negotiation.
#[derive(Debug)]
pub struct Handshake {
    state: State,
    /// The part of a header or of an option's data that has arrived.
    part: Vec<u8>,
    tls: Tls,
    fixed: bool,
    no_zeroes: bool,
    structured: bool,
    /// What SET_META_CONTEXT chose, and for which export.
    contexts: Option<(String, Vec<MetaContext>)>,
    /// Whether GO may wait for an export that is expected.
    patient: bool,
    options: u32,
    bytes: usize,
}

impl Handshake {
    /// A negotiation whose greeting has been or is being sent.
    #[must_use]
    pub fn new(tls: Tls) -> Handshake {
        Handshake {
            state: State::ClientFlags,
            part: Vec::new(),
            tls,
            fixed: false,
            no_zeroes: false,
            structured: false,
            contexts: None,
            patient: true,
            options: 0,
            bytes: 0,
        }
    }

    /// What the server says first.
    #[must_use]
    pub fn greeting() -> [u8; GREETING_BYTES] {
        let mut out = [0; GREETING_BYTES];
        out[..8].copy_from_slice(&NBD_MAGIC.to_be_bytes());
        out[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
        out[16..].copy_from_slice(&(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
        out
    }

    /// The connection is encrypted now. All that was agreed before is forgotten: whoever sat in
    /// between could have agreed to it.
    pub fn secured(&mut self) {
        self.tls = Tls::Active;
        self.structured = false;
        self.contexts = None;
    }

    /// From now on an export that is not there is refused, expected or not.
    pub fn wait_no_longer(&mut self) {
        self.patient = false;
    }

    /// Consume from the front of `input` up to the next event; replies are appended to `out`.
    pub fn feed(&mut self, input: &mut &[u8], exports: &dyn Exports, out: &mut Vec<u8>) -> Event {
        loop {
            let event = match self.state {
                State::ClientFlags => match self.collect::<4>(input) {
                    None => return self.need_more(),
                    Some(flags) => self.client_flags(u32::from_be_bytes(flags)),
                },
                State::Header => match self.collect::<16>(input) {
                    None => return self.need_more(),
                    Some(header) => self.header(&header),
                },
                State::Data { option, len } => {
                    if !self.fill(len, input) {
                        return self.need_more();
                    }
                    let data = std::mem::take(&mut self.part);
                    let event = self.option(option, &data, exports, out);
                    self.part = data;
                    if !matches!(event, Event::Later(_)) {
                        self.state = State::Header;
                        self.part.clear();
                    }
                    return event;
                }
                State::Skip { option, left } => {
                    let n = left.min(input.len());
                    *input = &input[n..];
                    self.bytes += n;
                    if n < left {
                        let left = left - n;
                        self.state = State::Skip { option, left };
                        return self.need_more();
                    }
                    self.state = State::Header;
                    return self.too_big(option, out);
                }
            };
            if let Some(breach) = event {
                return Event::Broken(breach);
            }
        }
    }

    fn need_more(&self) -> Event {
        debug_assert!(self.bytes <= BYTES_MAX);
        Event::NeedMore
    }

    /// Move input to `part` until it has `len` bytes.
    fn fill(&mut self, len: usize, input: &mut &[u8]) -> bool {
        let n = (len - self.part.len()).min(input.len());
        let (now, later) = input.split_at(n);
        self.part.extend_from_slice(now);
        self.bytes += n;
        *input = later;
        self.part.len() == len
    }

    fn collect<const N: usize>(&mut self, input: &mut &[u8]) -> Option<[u8; N]> {
        if !self.fill(N, input) {
            return None;
        }
        let whole = self.part.first_chunk().copied();
        self.part.clear();
        whole
    }

    fn client_flags(&mut self, flags: u32) -> Option<Breach> {
        let known = u32::from(FIXED_NEWSTYLE | NO_ZEROES);
        if flags & !known != 0 {
            return Some(Breach::ClientFlags(flags));
        }
        self.fixed = flags & u32::from(FIXED_NEWSTYLE) != 0;
        self.no_zeroes = flags & u32::from(NO_ZEROES) != 0;
        self.state = State::Header;
        None
    }

    fn header(&mut self, header: &[u8; 16]) -> Option<Breach> {
        let word = u128::from_be_bytes(*header);
        let magic = (word >> 64) as u64;
        let option = (word >> 32) as u32;
        let len = word as u32 as usize;
        if magic != OPTION_MAGIC {
            return Some(Breach::Magic(magic));
        }
        if !self.fixed && option != EXPORT_NAME {
            return Some(Breach::NotFixed(option));
        }
        self.options += 1;
        if self.options > OPTIONS_MAX {
            return Some(Breach::TooManyOptions);
        }
        // the next header must fit too, or the answer to this option would be the last thing said
        if self.bytes + len + 16 > BYTES_MAX {
            return Some(Breach::TooManyBytes);
        }
        self.state = if len > OPTION_MAX {
            State::Skip { option, left: len }
        } else {
            State::Data { option, len }
        };
        None
    }

    /// What was agreed on `export`, by a client that called it `requested`.
    fn agree(&mut self, requested: &str, export: Export) -> Box<Negotiated> {
        let contexts = match self.contexts.take() {
            // contexts hold for the export that they were chosen for, and for no other
            Some((name, contexts)) if name == requested && self.structured => contexts,
            _ => Vec::new(),
        };
        Box::new(Negotiated {
            requested: requested.to_owned(),
            export,
            structured: self.structured,
            contexts,
        })
    }
}

#[cfg(test)]
mod tests;
