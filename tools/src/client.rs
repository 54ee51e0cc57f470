//! The daemon, as its client sees it: one request a connection, JSON both ways.

use crate::failure::{Exit, Failure, exit_for};
use clap::Args;
use deltachain::base::{Error, ErrorKind, name};
use serde_json::Value;
use std::{
    env,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

/// Where the daemon listens unless it is said.
const SOCKET: &str = "/run/deltachain/control.sock";
/// Says it for all commands.
const VARIABLE: &str = "DCHAIN_SOCKET";
/// No answer is longer.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// Which daemon is meant.
#[derive(Args, Debug)]
pub struct Daemon {
    /// The daemon's control socket (else what `DCHAIN_SOCKET` names, else /run/deltachain/control.sock)
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

impl Daemon {
    fn socket(&self) -> PathBuf {
        let said = self.socket.clone().or_else(|| env::var_os(VARIABLE).map(PathBuf::from));
        said.unwrap_or_else(|| PathBuf::from(SOCKET))
    }

    /// Returns whether it was said on the command line where the daemon is.
    pub const fn is_named(&self) -> bool {
        self.socket.is_some()
    }

    /// Asks for something.
    pub fn get(&self, path: &str) -> Result<Value, Failure> {
        self.ask("GET", path, "")
    }

    /// Has something done.
    pub fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.ask("POST", path, &body.to_string())
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> Result<Value, Failure> {
        let socket = self.socket();
        let mut stream = UnixStream::connect(&socket).map_err(|e| {
            let failure = Failure::from(Error::io("no daemon answers there", e).path(&socket));
            failure.hint("dchaind --control unix:PATH listens at PATH; --socket PATH finds it")
        })?;
        let broken = |e| Failure::from(Error::io("the daemon went away", e).path(&socket));
        let answer = exchange(&mut stream, method, path, body).map_err(broken)?;
        let (status, value) = parse(&answer).ok_or_else(|| {
            Failure::from(Error::corrupt("what answers there is no daemon of ours").path(&socket))
        })?;
        if status < 300 { Ok(value) } else { Err(refused(&value)) }
    }
}

/// Answers of HTTP/1.0 end with the connection: nothing has to be put together.
fn exchange(stream: &mut UnixStream, method: &str, path: &str, body: &str) -> io::Result<Vec<u8>> {
    let head = format!("{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\n");
    let request = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
    // Who has its answer already may not read to the end.
    let sent = stream.write_all(request.as_bytes());
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    if answer.is_empty() { sent.and(Err(io::ErrorKind::UnexpectedEof.into())) } else { Ok(answer) }
}

/// Returns the status and the JSON of an answer.
fn parse(answer: &[u8]) -> Option<(u16, Value)> {
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let status = std::str::from_utf8(answer.get(..head)?).ok()?.split(' ').nth(1)?.parse().ok()?;
    Some((status, serde_json::from_slice(answer.get(head + 4..)?).ok()?))
}

/// Returns the failure that an object with `kind` and `message` tells of.
pub fn refused(value: &Value) -> Failure {
    let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let kind = value.get("kind").cloned().and_then(|kind| serde_json::from_value::<ErrorKind>(kind).ok());
    let what = text("message").unwrap_or_else(|| "the daemon refuses it".to_owned());
    let hint = text("hint").or_else(|| way_out(&what));
    Failure { exit: kind.map_or(Exit::Failed, exit_for), what, hint }
}

/// Returns what helps where something of the daemon's own is in the way: it knows nothing of commands.
fn way_out(what: &str) -> Option<String> {
    let named = |before: &str, after: &str| what.split_once(before)?.1.strip_suffix(after);
    let job = named(": job ", " is on it");
    let job = job.map(|id| format!("dchain job wait {id} follows it, dchain job cancel {id} gives it up"));
    job.or_else(|| {
        let id = named(": backup ", " is of it")?;
        Some(format!("dchain backup end {id} takes its exports away"))
    })
}

/// Returns a name as part of a request's path.
pub fn segment(name: &str) -> String {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(byte);
    let shown = name.bytes().map(|byte| match byte {
        byte if is_plain(&byte) => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    });
    shown.collect()
}

/// Returns a path as the daemon, which may have another folder, is to be told.
pub fn absolute(path: &Path) -> Result<String, Failure> {
    let path = std::path::absolute(path).map_err(|e| Error::io("find its folder", e).path(path))?;
    Ok(name::text(&path).into_owned())
}

/// Returns a layer as the daemon is to be told: by its name alone, or by its whole path.
pub fn layer(path: &Path) -> Result<String, Failure> {
    if path.components().count() == 1 { Ok(name::text(path).into_owned()) } else { absolute(path) }
}

/// Returns a text in an answer.
pub fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// Returns a number in an answer.
pub fn number(value: &Value, key: &str) -> u64 {
    value.get(key).and_then(Value::as_u64).unwrap_or_default()
}

/// Returns a list in an answer.
pub fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_ends_with_the_code_of_its_kind() {
        let failure = refused(&serde_json::json!({ "kind": "busy", "message": "m", "hint": null }));
        assert_eq!((failure.exit, failure.what.as_str(), failure.hint), (Exit::InUse, "m", None));
        assert_eq!(refused(&Value::Null).exit, Exit::Failed);
    }

    #[test]
    fn what_is_in_the_way_is_named_with_the_command_that_helps() {
        let hint = |what: &str| refused(&serde_json::json!({ "kind": "busy", "message": what })).hint;
        assert!(hint("disk 'vm': job 3 is on it").unwrap().contains("dchain job cancel 3"));
        assert!(hint("disk 'vm': backup b4 is of it").unwrap().contains("dchain backup end b4"));
        assert_eq!(hint("disk 'vm': it is in use"), None);
    }

    #[test]
    fn an_answer_is_its_status_and_its_json() {
        let (status, value) = parse(b"HTTP/1.0 404 Not Found\r\na: b\r\n\r\n{\"kind\": \"io\"}").unwrap();
        assert_eq!((status, text(&value, "kind")), (404, "io"));
        assert!(parse(b"SSH-2.0\r\n").is_none());
        assert_eq!(segment("a b/c"), "a%20b%2Fc");
    }
}
