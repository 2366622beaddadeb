//! Negotiation from the client's side, straight through over anything that reads and writes.

use std::io::{Read, Write};

use block::{Error, ErrorKind, Result};

use crate::codec::{PAYLOAD_MAX, TransmissionFlags};
use crate::handshake::wire::{
    ERR_TLS_REQD, ERR_UNKNOWN, ERR_UNSUP, FIXED_NEWSTYLE, GO, INFO, INFO_BLOCK_SIZE,
    INFO_DESCRIPTION, INFO_EXPORT, NBD_MAGIC, NO_ZEROES, OPTION_MAGIC, REP_ACK, REP_ERROR,
    REP_INFO, REP_META_CONTEXT, REPLY_MAGIC, SET_META_CONTEXT, STRUCTURED_REPLY,
};

/// Longest reply to an option that is believed: a name or a message and a few numbers.
const REPLY_MAX: u32 = 16 << 10;

/// What a server agreed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// Bytes of the export.
    pub size: u64,
    /// What it can do.
    pub flags: TransmissionFlags,
    /// Smallest unit of a request.
    pub block_min: u32,
    /// Smallest unit that is fast.
    pub block_preferred: u32,
    /// Largest payload.
    pub payload_max: u32,
    /// Reads are answered in chunks.
    pub structured: bool,
    /// Ids and names of the meta contexts that the server has, of those asked for.
    pub contexts: Vec<(u32, String)>,
}

/// Negotiate for `export` on a connection that was just made, with structured replies if the
/// server has them and with those of `contexts` that it has. After success the next byte sent is
/// the first of a request.
pub fn negotiate(
    stream: &mut (impl Read + Write),
    export: &str,
    contexts: &[String],
) -> Result<Agreed> {
    let mut dialogue = Dialogue { stream, export };
    dialogue.greet()?;
    let structured = dialogue.structured()?;
    let mut agreed = Agreed {
        size: 0,
        flags: TransmissionFlags::NONE,
        block_min: 1,
        block_preferred: 4096,
        payload_max: PAYLOAD_MAX,
        structured,
        contexts: Vec::new(),
    };
    if structured && !contexts.is_empty() {
        agreed.contexts = dialogue.contexts(contexts)?;
    }
    dialogue.go(&mut agreed)?;
    Ok(agreed)
}

/// Ask for an export's description, which may be empty. The connection is of no use afterwards.
pub(super) fn describe(stream: &mut (impl Read + Write), export: &str) -> Result<String> {
    let mut dialogue = Dialogue { stream, export };
    dialogue.greet()?;
    let mut data = string(export);
    data.extend(1u16.to_be_bytes());
    data.extend(INFO_DESCRIPTION.to_be_bytes());
    dialogue.ask(INFO, &data)?;
    let mut description = String::new();
    loop {
        match dialogue.reply(INFO)? {
            (REP_ACK, _) => return Ok(description),
            (REP_INFO, data) => {
                if let Some((kind, text)) = data.split_first_chunk()
                    && u16::from_be_bytes(*kind) == INFO_DESCRIPTION
                {
                    description = String::from_utf8_lossy(text).into_owned();
                }
            }
            (kind, message) => return Err(dialogue.refusal(kind, &message)),
        }
    }
}

struct Dialogue<'a, S> {
    stream: &'a mut S,
    export: &'a str,
}

impl<S: Read + Write> Dialogue<'_, S> {
    fn greet(&mut self) -> Result<()> {
        let greeting: [u8; 16] = self.read()?;
        if greeting != (u128::from(NBD_MAGIC) << 64 | u128::from(OPTION_MAGIC)).to_be_bytes() {
            return Err(self.error(
                ErrorKind::Protocol,
                "the server does not speak newstyle NBD",
            ));
        }
        let offered = u16::from_be_bytes(self.read()?);
        if offered & FIXED_NEWSTYLE == 0 {
            return Err(self.error(ErrorKind::Unsupported, "the server has no fixed newstyle"));
        }
        let flags = u32::from(offered & (FIXED_NEWSTYLE | NO_ZEROES));
        self.write(&flags.to_be_bytes())
    }

    fn structured(&mut self) -> Result<bool> {
        self.ask(STRUCTURED_REPLY, &[])?;
        match self.reply(STRUCTURED_REPLY)? {
            (REP_ACK, _) => Ok(true),
            (kind, _) if kind & REP_ERROR != 0 => Ok(false),
            (kind, _) => Err(self.unexpected(kind)),
        }
    }

    fn contexts(&mut self, wanted: &[String]) -> Result<Vec<(u32, String)>> {
        let mut data = string(self.export);
        data.extend((wanted.len() as u32).to_be_bytes());
        for name in wanted {
            data.extend(string(name));
        }
        self.ask(SET_META_CONTEXT, &data)?;
        let mut contexts = Vec::new();
        loop {
            match self.reply(SET_META_CONTEXT)? {
                (REP_ACK, _) => return Ok(contexts),
                (REP_META_CONTEXT, data) => {
                    let (id, name) = data
                        .split_first_chunk()
                        .ok_or_else(|| self.unexpected(REP_META_CONTEXT))?;
                    let name = String::from_utf8_lossy(name).into_owned();
                    if !wanted.contains(&name) {
                        return Err(self.unexpected(REP_META_CONTEXT));
                    }
                    contexts.push((u32::from_be_bytes(*id), name));
                }
                (ERR_UNSUP, _) => return Ok(Vec::new()),
                (kind, message) => return Err(self.refusal(kind, &message)),
            }
        }
    }

    fn go(&mut self, agreed: &mut Agreed) -> Result<()> {
        let mut data = string(self.export);
        data.extend(1u16.to_be_bytes());
        data.extend(INFO_BLOCK_SIZE.to_be_bytes());
        self.ask(GO, &data)?;
        let mut told = false;
        loop {
            match self.reply(GO)? {
                (REP_ACK, _) if told => return Ok(()),
                (REP_ACK, _) => {
                    return Err(self.error(ErrorKind::Protocol, "the server told no size"));
                }
                (REP_INFO, data) => match parse_info(&data, agreed) {
                    Some(size) => told |= size,
                    None => return Err(self.unexpected(REP_INFO)),
                },
                (kind, message) => return Err(self.refusal(kind, &message)),
            }
        }
    }

    fn ask(&mut self, option: u32, data: &[u8]) -> Result<()> {
        let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
        bytes.extend(option.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        self.write(&bytes)
    }

    fn reply(&mut self, option: u32) -> Result<(u32, Vec<u8>)> {
        let magic = u64::from_be_bytes(self.read()?);
        let to = u32::from_be_bytes(self.read()?);
        let kind = u32::from_be_bytes(self.read()?);
        let len = u32::from_be_bytes(self.read()?);
        if magic != REPLY_MAGIC || to != option || len > REPLY_MAX {
            let what = format!("a malformed reply to option {option}");
            return Err(self.error(ErrorKind::Protocol, &what));
        }
        let mut data = vec![0; len as usize];
        self.stream
            .read_exact(&mut data)
            .map_err(|e| self.lost(e))?;
        Ok((kind, data))
    }

    fn read<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        match self.stream.read_exact(&mut bytes) {
            Ok(()) => Ok(bytes),
            Err(e) => Err(self.lost(e)),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let sent = self.stream.write_all(bytes);
        sent.map_err(|e| self.lost(e))
    }

    fn refusal(&self, kind: u32, message: &[u8]) -> Error {
        let said = String::from_utf8_lossy(message);
        match kind {
            ERR_UNKNOWN => self.error(ErrorKind::NotFound, &format!("no such export ({said})")),
            ERR_TLS_REQD => self.error(ErrorKind::Denied, "the server wants TLS"),
            ERR_UNSUP => self.error(ErrorKind::Unsupported, "the server does not know GO"),
            kind if kind & REP_ERROR != 0 => {
                let code = kind & !REP_ERROR;
                self.error(
                    ErrorKind::Denied,
                    &format!("refused with error {code}: {said}"),
                )
            }
            kind => self.unexpected(kind),
        }
    }

    fn unexpected(&self, kind: u32) -> Error {
        let what = format!("a reply of type {kind:#x} that makes no sense here");
        self.error(ErrorKind::Protocol, &what)
    }

    fn lost(&self, e: std::io::Error) -> Error {
        super::dial::io_error(format!("NBD export {:?}: negotiate", self.export), e)
    }

    fn error(&self, kind: ErrorKind, what: &str) -> Error {
        Error::new(kind, format!("NBD export {:?}: {what}", self.export))
    }
}

/// A string after its length.
fn string(s: &str) -> Vec<u8> {
    let mut bytes = (s.len() as u32).to_be_bytes().to_vec();
    bytes.extend(s.as_bytes());
    bytes
}

/// Take in one information; whether it was the size. `None` if it is malformed.
fn parse_info(data: &[u8], agreed: &mut Agreed) -> Option<bool> {
    let (kind, data) = data.split_first_chunk()?;
    match u16::from_be_bytes(*kind) {
        INFO_EXPORT => {
            let (size, flags) = data.split_first_chunk()?;
            agreed.size = u64::from_be_bytes(*size);
            agreed.flags = TransmissionFlags(u16::from_be_bytes(flags.try_into().ok()?));
            Some(true)
        }
        INFO_BLOCK_SIZE => {
            let [min, preferred, max] = *data.as_chunks::<4>().0 else {
                return None;
            };
            let [min, preferred, max] = [min, preferred, max].map(u32::from_be_bytes);
            if !min.is_power_of_two() || preferred < min || max < min {
                return None;
            }
            agreed.block_min = min;
            agreed.block_preferred = preferred;
            agreed.payload_max = max.min(PAYLOAD_MAX);
            Some(false)
        }
        _ => Some(false),
    }
}
