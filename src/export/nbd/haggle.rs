//! The handshake as a machine over bytes: an option comes in, replies go out, and in the end an export is agreed
//! on. No socket, no clock.
//!
//! What stays true: every option but `NBD_OPT_EXPORT_NAME` gets exactly one final reply; lengths inside an option
//! are believed only as far as its data goes; where TLS is required, nothing is told and nothing is agreed on before
//! it (`FORCEDTLS` of the protocol), and what was agreed on in the clear is forgotten when it begins.

use super::{
    request::{Style, Terms},
    status,
    wire::{
        BlockSizes, ExportAnswer, OPTION_REPLY_MAGIC, OptionReply, PAYLOAD_BYTES_MAX, STRING_BYTES_MAX,
        answer, info, option, transmission,
    },
};
use crate::{
    base::ErrorKind,
    export::{Context, Export, Exports},
};
use std::sync::Arc;

/// What clients are told to prefer: a page, which is what guests write at least.
const PREFERRED_BYTES: u32 = 4096;

/// A context that the client chose, and what it is called in replies.
pub(super) type Chosen = (u32, Arc<dyn Context>);

/// What both sides agreed on.
pub(super) struct Agreed {
    pub(super) export: Export,
    pub(super) terms: Terms,
    pub(super) contexts: Vec<Chosen>,
}

/// What there is between a client and whoever listens on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cover {
    /// Nothing, and nothing is to be had.
    None,
    /// Nothing, but TLS may begin.
    Offered,
    /// Nothing, and TLS has to begin.
    Required,
    /// TLS.
    Tls,
}

/// How the handshake goes on.
pub(super) enum Next {
    /// With another option.
    Option,
    /// With that of TLS; then options come again.
    Tls,
    /// It is over: requests come now.
    Transmission(Box<Agreed>),
    /// The client leaves, or has to.
    End,
}

/// Takes a message apart; every step fails where the message ends.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    fn half(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    fn word(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    fn string(&mut self) -> Option<&'a str> {
        let bytes = usize::try_from(self.word()?).ok().filter(|bytes| *bytes <= STRING_BYTES_MAX)?;
        let text = str::from_utf8(self.take(bytes)?).ok()?;
        (!text.contains('\0')).then_some(text)
    }
}

/// `NBD_OPT_INFO` and `NBD_OPT_GO`: a name, and kinds of information.
fn parse_info(data: &[u8]) -> Option<(&str, Vec<u16>)> {
    let mut data = Cursor(data);
    let name = data.string()?;
    let kinds = data.half()?;
    let kinds = (0..kinds).map(|_| data.half()).collect::<Option<Vec<_>>>()?;
    data.0.is_empty().then_some((name, kinds))
}

/// `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`: a name, and queries.
fn parse_queries(data: &[u8]) -> Option<(&str, Vec<&str>)> {
    let mut data = Cursor(data);
    let name = data.string()?;
    let queries = data.word()?;
    let mut found = Vec::new();
    for _ in 0..queries {
        // Each takes bytes of the message, so its length bounds them.
        found.push(data.string()?);
    }
    data.0.is_empty().then_some((name, found))
}

/// The handshake so far.
pub(super) struct Haggling<'a> {
    exports: &'a dyn Exports,
    has_no_zeroes: bool,
    cover: Cover,
    style: Style,
    /// For which export contexts were chosen, and the names of which: a client that only haggles holds no disk.
    chosen: Option<(String, Vec<String>)>,
}

impl<'a> Haggling<'a> {
    /// Begins; `has_no_zeroes`: the client wants no padding after `NBD_OPT_EXPORT_NAME`.
    pub(super) fn new(exports: &'a dyn Exports, has_no_zeroes: bool, cover: Cover) -> Self {
        Self { exports, has_no_zeroes, cover, style: Style::Simple, chosen: None }
    }

    /// Answers an option.
    pub(super) fn answer(&mut self, option: u32, data: &[u8], out: &mut Vec<u8>) -> Next {
        if self.refuses(option) {
            if option == option::EXPORT_NAME {
                // There is no reply that could say why.
                return Next::End;
            }
            reply(out, option, answer::ERR_TLS_REQD, b"TLS is required here");
            return Next::Option;
        }
        match option {
            option::EXPORT_NAME => return self.export_name(data, out),
            option::GO => return self.go(data, out),
            option::ABORT => {
                reply(out, option, answer::ACK, &[]);
                return Next::End;
            }
            option::LIST => self.list(data, out),
            option::INFO => drop(self.inform(option, data, out)),
            option::STRUCTURED_REPLY | option::EXTENDED_HEADERS => self.shape(option, data, out),
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => self.contexts(option, data, out),
            option::START_TLS => return self.start_tls(data, out),
            _ => reply(out, option, answer::ERR_UNSUP, b"this option is not known here"),
        }
        Next::Option
    }

    /// Answers an option that is too long to be read.
    pub(super) fn refuse_long(&self, option: u32, out: &mut Vec<u8>) {
        let (kind, why) = if self.refuses(option) {
            (answer::ERR_TLS_REQD, "TLS is required here")
        } else {
            (answer::ERR_TOO_BIG, "too long")
        };
        reply(out, option, kind, why.as_bytes());
    }

    /// Whether an option has to wait for TLS.
    fn refuses(&self, option: u32) -> bool {
        self.cover == Cover::Required && !matches!(option, option::START_TLS | option::ABORT)
    }

    fn start_tls(&mut self, data: &[u8], out: &mut Vec<u8>) -> Next {
        let (kind, why) = match self.cover {
            _ if !data.is_empty() => (answer::ERR_INVALID, "malformed"),
            Cover::None => (answer::ERR_POLICY, "TLS is not offered here"),
            Cover::Tls => (answer::ERR_INVALID, "TLS has begun already"),
            Cover::Offered | Cover::Required => {
                reply(out, option::START_TLS, answer::ACK, &[]);
                *self = Self::new(self.exports, self.has_no_zeroes, Cover::Tls);
                return Next::Tls;
            }
        };
        reply(out, option::START_TLS, kind, why.as_bytes());
        Next::Option
    }

    fn agree(&mut self, export: Export) -> Next {
        let chosen = self.chosen.take().filter(|(name, _)| *name == export.name);
        let names = chosen.map(|(_, names)| names).unwrap_or_default();
        let is_chosen = |name: &str| names.iter().any(|chosen| chosen == name);
        let contexts: Vec<Chosen> =
            contexts(&export).filter(|(_, context)| is_chosen(context.name())).collect();
        let terms = Terms {
            style: self.style,
            size: export.disk.size(),
            is_writable: export.is_writable(),
            has_contexts: !contexts.is_empty(),
        };
        Next::Transmission(Box::new(Agreed { export, terms, contexts }))
    }

    fn flags(&self, export: &Export) -> u16 {
        let mut flags = transmission::HAS_FLAGS
            | transmission::SEND_FLUSH
            | transmission::SEND_FUA
            | transmission::SEND_CACHE;
        if export.is_writable() {
            flags |= transmission::SEND_TRIM | transmission::SEND_WRITE_ZEROES | transmission::SEND_FAST_ZERO;
        } else {
            flags |= transmission::READ_ONLY;
        }
        if self.style != Style::Simple {
            flags |= transmission::SEND_DF;
        }
        if export.is_multi_conn {
            flags |= transmission::CAN_MULTI_CONN;
        }
        flags
    }

    fn export_name(&mut self, data: &[u8], out: &mut Vec<u8>) -> Next {
        let name = str::from_utf8(data).ok().filter(|name| name.len() <= STRING_BYTES_MAX);
        let Some(export) = name.and_then(|name| self.exports.open(name).ok()) else {
            // There is no reply that could say why.
            return Next::End;
        };
        let said = ExportAnswer { kind: 0, size: export.disk.size(), flags: self.flags(&export) };
        out.extend_from_slice(said.to_bytes().get(2..).unwrap_or_default());
        if !self.has_no_zeroes {
            out.extend_from_slice(&[0; 124]);
        }
        self.agree(export)
    }

    fn go(&mut self, data: &[u8], out: &mut Vec<u8>) -> Next {
        self.inform(option::GO, data, out).map_or(Next::Option, |export| self.agree(export))
    }

    /// Answers with what the client may know of an export, which is returned if there is one.
    fn inform(&self, option: u32, data: &[u8], out: &mut Vec<u8>) -> Option<Export> {
        let Some((name, kinds)) = parse_info(data) else {
            reply(out, option, answer::ERR_INVALID, b"malformed");
            return None;
        };
        let export = self.open(option, name, out)?;
        let said = ExportAnswer { kind: info::EXPORT, size: export.disk.size(), flags: self.flags(&export) };
        reply(out, option, answer::INFO, &said.to_bytes());
        let minimum = export.disk.sector_bytes();
        let preferred = PREFERRED_BYTES.max(minimum);
        let sizes = BlockSizes { kind: info::BLOCK_SIZE, minimum, preferred, maximum: PAYLOAD_BYTES_MAX };
        reply(out, option, answer::INFO, &sizes.to_bytes());
        for (kind, text) in [(info::NAME, &export.name), (info::DESCRIPTION, &export.description)] {
            if kinds.contains(&kind) {
                let said = [kind.to_be_bytes().as_slice(), text.as_bytes()].concat();
                reply(out, option, answer::INFO, &said);
            }
        }
        reply(out, option, answer::ACK, &[]);
        Some(export)
    }

    /// Opens an export, or says why not.
    fn open(&self, option: u32, name: &str, out: &mut Vec<u8>) -> Option<Export> {
        match self.exports.open(name) {
            Ok(export) => Some(export),
            Err(error) => {
                let (kind, why) = match error.kind() {
                    ErrorKind::Policy => (answer::ERR_POLICY, "this export is not for you"),
                    _ => (answer::ERR_UNKNOWN, "there is no export of that name"),
                };
                reply(out, option, kind, why.as_bytes());
                None
            }
        }
    }

    fn list(&self, data: &[u8], out: &mut Vec<u8>) {
        if !data.is_empty() {
            return reply(out, option::LIST, answer::ERR_INVALID, b"malformed");
        }
        for (name, description) in self.exports.list() {
            let length = u32::try_from(name.len()).unwrap_or_default().to_be_bytes();
            let said = [length.as_slice(), name.as_bytes(), description.as_bytes()].concat();
            reply(out, option::LIST, answer::SERVER, &said);
        }
        reply(out, option::LIST, answer::ACK, &[]);
    }

    /// Agrees on the shape of requests and replies.
    fn shape(&mut self, option: u32, data: &[u8], out: &mut Vec<u8>) {
        let is_extending = option == option::EXTENDED_HEADERS;
        let (kind, why) = match self.style {
            _ if !data.is_empty() => (answer::ERR_INVALID, "malformed"),
            Style::Extended if !is_extending => {
                (answer::ERR_EXT_HEADER_REQD, "extended headers are agreed on already")
            }
            Style::Extended => (answer::ERR_INVALID, "agreed on already"),
            Style::Structured if !is_extending => (answer::ERR_INVALID, "agreed on already"),
            Style::Simple | Style::Structured => {
                self.style = if is_extending { Style::Extended } else { Style::Structured };
                // Contexts are chosen for one shape of replies.
                self.chosen = None;
                (answer::ACK, "")
            }
        };
        reply(out, option, kind, why.as_bytes());
    }

    /// Lists contexts, or has some chosen.
    fn contexts(&mut self, option: u32, data: &[u8], out: &mut Vec<u8>) {
        let is_choosing = option == option::SET_META_CONTEXT;
        if is_choosing {
            self.chosen = None;
        }
        if self.style == Style::Simple {
            return reply(out, option, answer::ERR_INVALID, b"needs structured replies");
        }
        let Some((name, queries)) = parse_queries(data) else {
            return reply(out, option, answer::ERR_INVALID, b"malformed");
        };
        let Some(export) = self.open(option, name, out) else { return };
        let mut chosen = Vec::new();
        for (id, context) in contexts(&export) {
            let called = context.name();
            let is_meant = |query: &&str| {
                *query == called || !is_choosing && query.ends_with(':') && called.starts_with(query)
            };
            if queries.iter().any(is_meant) || !is_choosing && queries.is_empty() {
                let said = [id.to_be_bytes().as_slice(), called.as_bytes()].concat();
                reply(out, option, answer::META_CONTEXT, &said);
                chosen.push(called.to_owned());
            }
        }
        reply(out, option, answer::ACK, &[]);
        if is_choosing {
            self.chosen = Some((export.name, chosen));
        }
    }
}

/// Returns all contexts of an export, and what they are called in replies.
fn contexts(export: &Export) -> impl Iterator<Item = Chosen> {
    (0_u32..).zip(status::contexts(export))
}

/// Appends a reply to an option.
pub(super) fn reply(out: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    let bytes = u32::try_from(data.len()).unwrap_or_default();
    out.extend_from_slice(&OptionReply { magic: OPTION_REPLY_MAGIC, option, kind, bytes }.to_bytes());
    out.extend_from_slice(data);
}

#[cfg(test)]
mod tests;
