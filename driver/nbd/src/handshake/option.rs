//! The options, one by one, and their replies.

use super::wire::*;
use super::{Breach, EXPORT_NAME_ZEROES, Event, Handshake, STRING_MAX, Tls};
use crate::codec::{PAYLOAD_MAX, TransmissionFlags};
use crate::export::{Export, Exports};

/// An option refused: the reply type and a sentence for a person.
pub(super) type Refused = (u32, &'static str);

/// Append one reply to `option`.
pub(super) fn reply(out: &mut Vec<u8>, option: u32, kind: u32, parts: &[&[u8]]) {
    let len: usize = parts.iter().map(|p| p.len()).sum();
    out.extend_from_slice(&REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&(len as u32).to_be_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
}

impl Handshake {
    /// Answer one option.
    pub(super) fn option(
        &mut self,
        option: u32,
        data: &[u8],
        exports: &dyn Exports,
        out: &mut Vec<u8>,
    ) -> Event {
        if self.tls == Tls::Required && !matches!(option, STARTTLS | ABORT) {
            if option == EXPORT_NAME {
                return Event::Broken(Breach::NotEncrypted);
            }
            reply(
                out,
                option,
                ERR_TLS_REQD,
                &[b"this server talks after STARTTLS only"],
            );
            return Event::Send;
        }
        if option == GO
            && let Some(name) = self.expected(data, exports)
        {
            return Event::Later(name);
        }
        let answer = match option {
            EXPORT_NAME => return self.export_name(data, exports, out),
            ABORT => {
                reply(out, option, REP_ACK, &[]);
                return Event::Aborted;
            }
            LIST => list(data, exports, out),
            STARTTLS => match self.starttls(data) {
                Ok(()) => {
                    reply(out, option, REP_ACK, &[]);
                    return Event::StartTls;
                }
                Err(refused) => Err(refused),
            },
            INFO | GO => match self.info(option, data, exports, out) {
                Ok((name, export)) => {
                    reply(out, option, REP_ACK, &[]);
                    if option == INFO {
                        return Event::Send;
                    }
                    return Event::Done(self.agree(name, export));
                }
                Err(refused) => Err(refused),
            },
            STRUCTURED_REPLY if data.is_empty() => {
                self.structured = true;
                Ok(())
            }
            STRUCTURED_REPLY => Err((ERR_INVALID, "STRUCTURED_REPLY has no data")),
            LIST_META_CONTEXT => self.list_contexts(data, exports, out),
            SET_META_CONTEXT => self.set_contexts(data, exports, out),
            _ => Err((ERR_UNSUP, "unknown option")),
        };
        match answer {
            Ok(()) => reply(out, option, REP_ACK, &[]),
            Err((kind, why)) => reply(out, option, kind, &[why.as_bytes()]),
        }
        Event::Send
    }

    /// Refuse an option whose data was thrown away unread.
    pub(super) fn too_big(&mut self, option: u32, out: &mut Vec<u8>) -> Event {
        if option == EXPORT_NAME {
            return Event::Broken(Breach::NoSuchExport);
        }
        if option == SET_META_CONTEXT {
            self.contexts = None;
        }
        reply(out, option, ERR_TOO_BIG, &[b"option data is too long"]);
        Event::Send
    }

    fn export_name(&mut self, data: &[u8], exports: &dyn Exports, out: &mut Vec<u8>) -> Event {
        let found = string(data)
            .ok()
            .and_then(|name| Some((name, exports.find(name)?)));
        let Some((name, export)) = found else {
            return Event::Broken(Breach::NoSuchExport);
        };
        let agreed = self.agree(name, export);
        out.extend_from_slice(&agreed.export.size.to_be_bytes());
        out.extend_from_slice(&agreed.export.flags.0.to_be_bytes());
        if !self.no_zeroes {
            out.extend_from_slice(&[0; EXPORT_NAME_ZEROES]);
        }
        Event::Done(agreed)
    }

    /// The export that GO asks for, if it is not there and worth waiting for.
    fn expected(&self, data: &[u8], exports: &dyn Exports) -> Option<String> {
        let name = Fields(data).string().ok().filter(|_| self.patient)?;
        let is_absent = self.find(name, exports).is_none();
        (is_absent && exports.arrival(name).is_some()).then(|| name.to_owned())
    }

    /// INFO and GO up to the ACK.
    fn info<'a>(
        &self,
        option: u32,
        data: &'a [u8],
        exports: &dyn Exports,
        out: &mut Vec<u8>,
    ) -> Result<(&'a str, Export), Refused> {
        let mut fields = Fields(data);
        let name = fields.string()?;
        let count = fields.u16()?;
        let (wanted, rest) = fields.0.as_chunks::<2>();
        if wanted.len() != usize::from(count) || !rest.is_empty() {
            return Err((
                ERR_INVALID,
                "the information requests do not fill the option",
            ));
        }
        let export = self
            .find(name, exports)
            .ok_or((ERR_UNKNOWN, "no such export"))?;
        let wants = |kind: u16| wanted.iter().any(|w| u16::from_be_bytes(*w) == kind);
        let mut say = |kind: u16, parts: [&[u8]; 3]| {
            let [a, b, c] = parts;
            reply(out, option, REP_INFO, &[&kind.to_be_bytes(), a, b, c]);
        };
        let size = export.size.to_be_bytes();
        say(INFO_EXPORT, [&size, &export.flags.0.to_be_bytes(), &[]]);
        if wants(INFO_NAME) {
            say(INFO_NAME, [export.name.as_bytes(), &[], &[]]);
        }
        if wants(INFO_DESCRIPTION) && !export.description.is_empty() {
            say(INFO_DESCRIPTION, [export.description.as_bytes(), &[], &[]]);
        }
        if wants(INFO_BLOCK_SIZE) {
            let min = export.block_min.to_be_bytes();
            let preferred = export.block_preferred.to_be_bytes();
            say(
                INFO_BLOCK_SIZE,
                [&min, &preferred, &PAYLOAD_MAX.to_be_bytes()],
            );
        }
        Ok((name, export))
    }

    /// The export as this client will have it: DF goes with structured replies.
    fn find(&self, name: &str, exports: &dyn Exports) -> Option<Export> {
        let mut export = exports.find(name)?;
        if self.structured {
            export.flags = export.flags | TransmissionFlags::SEND_DF;
        }
        Some(export)
    }

    fn starttls(&self, data: &[u8]) -> Result<(), Refused> {
        match self.tls {
            Tls::Absent => Err((ERR_UNSUP, "this server has no TLS")),
            Tls::Active => Err((ERR_INVALID, "TLS is running already")),
            Tls::Offered | Tls::Required if data.is_empty() => Ok(()),
            Tls::Offered | Tls::Required => Err((ERR_INVALID, "STARTTLS has no data")),
        }
    }
}

fn list(data: &[u8], exports: &dyn Exports, out: &mut Vec<u8>) -> Result<(), Refused> {
    if !data.is_empty() {
        return Err((ERR_INVALID, "LIST has no data"));
    }
    for name in exports.names() {
        let len = (name.len() as u32).to_be_bytes();
        reply(out, LIST, REP_SERVER, &[&len, name.as_bytes()]);
    }
    Ok(())
}

/// A string of the protocol.
fn string(bytes: &[u8]) -> Result<&str, Refused> {
    if bytes.len() > STRING_MAX {
        return Err((ERR_TOO_BIG, "a string is longer than 4096 bytes"));
    }
    match std::str::from_utf8(bytes) {
        Ok(s) if !s.contains('\0') => Ok(s),
        _ => Err((ERR_INVALID, "a string is not UTF-8 without NUL")),
    }
}

/// Reads an option's data from the front; never past its end, whatever lengths it claims.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    const SHORT: Refused = (
        ERR_INVALID,
        "the option's data is too short for what it claims",
    );

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Refused> {
        let (head, rest) = self.0.split_first_chunk().ok_or(Self::SHORT)?;
        self.0 = rest;
        Ok(*head)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Refused> {
        self.take().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Refused> {
        self.take().map(u32::from_be_bytes)
    }

    /// A string after its length in 32 bits.
    pub(super) fn string(&mut self) -> Result<&'a str, Refused> {
        let len = self.u32()? as usize;
        let (head, rest) = self.0.split_at_checked(len).ok_or(Self::SHORT)?;
        self.0 = rest;
        string(head)
    }
}
