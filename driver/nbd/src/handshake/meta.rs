//! Meta contexts: which extents a client may ask block status for.
//!
//! A query is a context's name or, in LIST only, a prefix of names that ends with a colon:
//! `base:`, `qemu:`, `qemu:dirty-bitmap:`. Queries that match nothing are passed over in silence,
//! as the specification has it: a client learns what it got from the replies.

use super::option::{Fields, Refused, reply};
use super::wire::{
    ERR_INVALID, ERR_TOO_BIG, ERR_UNKNOWN, LIST_META_CONTEXT, REP_META_CONTEXT, SET_META_CONTEXT,
};
use super::{CONTEXTS_MAX, Handshake};
use crate::export::{Export, Exports, MetaContext};

impl Handshake {
    pub(super) fn list_contexts(
        &self,
        data: &[u8],
        exports: &dyn Exports,
        out: &mut Vec<u8>,
    ) -> Result<(), Refused> {
        let (_, export, queries) = parse(data, exports)?;
        for context in offered(&export) {
            let name = context.name();
            let hit = |q: &&str| name == *q || (q.ends_with(':') && name.starts_with(*q));
            if queries.is_empty() || queries.iter().any(hit) {
                // the id means nothing in a list
                let id = 0u32.to_be_bytes();
                reply(
                    out,
                    LIST_META_CONTEXT,
                    REP_META_CONTEXT,
                    &[&id, name.as_bytes()],
                );
            }
        }
        Ok(())
    }

    pub(super) fn set_contexts(
        &mut self,
        data: &[u8],
        exports: &dyn Exports,
        out: &mut Vec<u8>,
    ) -> Result<(), Refused> {
        // a new choice replaces the old one, also when it fails
        self.contexts = None;
        if !self.structured {
            return Err((ERR_INVALID, "meta contexts need STRUCTURED_REPLY first"));
        }
        let (requested, export, queries) = parse(data, exports)?;
        let chosen: Vec<MetaContext> = offered(&export)
            .filter(|c| queries.contains(&c.name().as_str()))
            .collect();
        if chosen.len() > CONTEXTS_MAX {
            return Err((ERR_TOO_BIG, "more meta contexts than one session may have"));
        }
        for (id, context) in chosen.iter().enumerate() {
            let id = (id as u32).to_be_bytes();
            reply(
                out,
                SET_META_CONTEXT,
                REP_META_CONTEXT,
                &[&id, context.name().as_bytes()],
            );
        }
        self.contexts = Some((requested.to_owned(), chosen));
        Ok(())
    }
}

fn offered(export: &Export) -> impl Iterator<Item = MetaContext> {
    let dirty = export.checkpoints.iter().cloned().map(MetaContext::Dirty);
    std::iter::once(MetaContext::Allocation).chain(dirty)
}

/// The export's name as asked for, the export, and the queries.
fn parse<'a>(
    data: &'a [u8],
    exports: &dyn Exports,
) -> Result<(&'a str, Export, Vec<&'a str>), Refused> {
    let mut fields = Fields(data);
    let name = fields.string()?;
    let count = fields.u32()?;
    let mut queries = Vec::new();
    for _ in 0..count {
        // a count that the data does not bear out ends here, before the vector has grown
        queries.push(fields.string()?);
    }
    if !fields.0.is_empty() {
        return Err((ERR_INVALID, "data after the last query"));
    }
    let export = exports.find(name).ok_or((ERR_UNKNOWN, "no such export"))?;
    Ok((name, export, queries))
}
