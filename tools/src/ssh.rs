//! Stores on other machines: `ssh://[user@]host[:port]/folder`, served by the `dchain` there, which ssh starts.
//!
//! What stays true: no word from outside reaches a shell unquoted, here or there, and none is taken for an option.

use crate::failure::{Exit, Failure, quoted};
use deltachain::job::stream::{NO_STREAM, Peer};
use std::{
    env,
    ffi::OsStr,
    io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

const SCHEME: &[u8] = b"ssh://";
/// Names the command that is run instead of `ssh`.
const VARIABLE: &str = "DCHAIN_SSH";
/// So much waits in a pipe to ssh: more than its usual 64 KiB, so that both sides stop less often.
const PIPE_BYTES: usize = 1 << 20;
/// What a shell says of a command that it does not find.
const NOT_FOUND: i32 = 127;
/// How often it is looked whether ssh has ended, and how often at most: half a minute.
const GLANCE: Duration = Duration::from_millis(50);
const GLANCES: u32 = 600;
/// What is said of a connection that is no more.
const LOST: &str = "the connection failed or was lost";
/// What ssh ends with where it has no connection.
const NO_CONNECTION: i32 = 255;

/// A place on another machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// `user@host` or `host`.
    host: String,
    port: Option<u16>,
    /// Absolute, or relative to the home folder there.
    pub path: PathBuf,
}

impl Place {
    /// Reads a place; `None` for what is a path on this machine.
    pub fn parse(text: &Path) -> Result<Option<Self>, Failure> {
        let Some(rest) = text.as_os_str().as_bytes().strip_prefix(SCHEME) else { return Ok(None) };
        let wrong = |what: &str| {
            let failure = Failure::usage(format!("{}: {what}", text.display()));
            failure.hint("a store on another machine is ssh://[user@]host[:port]/folder")
        };
        let slash = rest.iter().position(|byte| *byte == b'/').ok_or_else(|| wrong("names no folder"))?;
        let (machine, path) = rest.split_at(slash);
        let machine = std::str::from_utf8(machine).map_err(|_| wrong("names no host"))?;
        let (user, address) = match machine.rsplit_once('@') {
            Some((user, address)) => (Some(user), address),
            None => (None, machine),
        };
        let (name, port) = split_port(address).ok_or_else(|| wrong("names no port after the colon"))?;
        let is_plain = |word: &str, more: &str| {
            let known = |c: char| c.is_ascii_alphanumeric() || more.contains(c);
            !word.is_empty() && !word.starts_with('-') && word.chars().all(known)
        };
        if !is_plain(name, ".-_:%") || user.is_some_and(|user| !is_plain(user, ".-_+")) {
            return Err(wrong("names no host"));
        }
        let host = user.map_or_else(|| name.to_owned(), |user| format!("{user}@{name}"));
        // As git has it: below the home folder.
        let path = path.strip_prefix(b"/~/").unwrap_or(path);
        let path = PathBuf::from(OsStr::from_bytes(if path.is_empty() { b"." } else { path }));
        Ok(Some(Self { host, port, path }))
    }

    /// Starts the `dchain` of that machine in `folder`, which it keeps to, and writes to only if asked.
    pub fn connect(&self, ssh: Option<&str>, folder: &Path, is_writable: bool) -> Result<Session, Failure> {
        let named = env::var(VARIABLE).ok();
        let ssh = ssh.or(named.as_deref()).unwrap_or("ssh");
        let mut words = ssh.split_whitespace();
        let program = words.next().ok_or_else(|| Failure::usage("--ssh names no command"))?;
        let mut command = Command::new(program);
        command.args(words);
        if let Some(port) = self.port {
            command.arg("-p").arg(port.to_string());
        }
        command.arg("--").arg(&self.host).arg(remote_command(folder, is_writable)?);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|e| {
            Failure::usage(format!("{program}: {e}")).exit(Exit::Failed).hint("--ssh names another command")
        })?;
        let pipes = (child.stdout.take(), child.stdin.take());
        let (Some(from), Some(to)) = pipes else { return Err(io::Error::other("no pipes").into()) };
        // Where the system has no room for that, the usual size does.
        let _ = rustix::pipe::fcntl_setpipe_size(&from, PIPE_BYTES);
        let _ = rustix::pipe::fcntl_setpipe_size(&to, PIPE_BYTES);
        let port = self.port.map(|port| format!(" -p {port}")).unwrap_or_default();
        let probe = format!("{ssh}{port} {} true", self.host);
        Ok(Session { peer: Peer::new(Box::new(from), Box::new(to)), child: Ended { child, probe } })
    }
}

fn split_port(address: &str) -> Option<(&str, Option<u16>)> {
    if let Some(rest) = address.strip_prefix('[') {
        let (name, port) = rest.split_once(']')?;
        return match port.strip_prefix(':') {
            Some(port) => Some((name, Some(port.parse().ok()?))),
            None => port.is_empty().then_some((name, None)),
        };
    }
    match address.split_once(':') {
        Some((name, port)) => Some((name, Some(port.parse().ok()?))),
        None => Some((address, None)),
    }
}

/// Returns what the shell of the other machine is given.
fn remote_command(folder: &Path, is_writable: bool) -> Result<std::ffi::OsString, Failure> {
    let bytes = folder.as_os_str().as_bytes();
    if bytes.contains(&0) {
        return Err(Failure::usage("a folder's name has no NUL byte"));
    }
    let mut command = b"dchain store-agent ".to_vec();
    if is_writable {
        command.extend_from_slice(b"--write ");
    }
    command.extend_from_slice(b"--root='");
    for byte in bytes {
        // Within single quotes only the quote itself ends them.
        if *byte == b'\'' { command.extend_from_slice(br"'\''") } else { command.push(*byte) }
    }
    command.push(b'\'');
    Ok(OsStr::from_bytes(&command).to_owned())
}

/// The program that carries a session.
#[derive(Debug)]
pub struct Ended {
    child: Child,
    /// A command that shows whether there is a way to the other machine.
    probe: String,
}

/// A session that was begun.
#[derive(Debug)]
pub struct Session {
    /// The wire.
    pub peer: Peer,
    /// Who carries it.
    pub child: Ended,
}

impl Ended {
    /// The same of a session of which nothing was heard yet: there is nothing to go on from.
    pub fn explain_start(self, failure: Failure) -> Failure {
        let probe = self.probe.clone();
        if failure.what.contains(NO_STREAM) {
            return failure
                .hint(format!("the shell there says something of its own: `{probe}` must print nothing"));
        }
        let failure = self.explain(failure);
        let what = match failure.what.as_str() {
            LOST => "no connection to the other machine",
            what if what.contains("ends too early") || what.contains("the wire") => {
                "the other machine ended before it had said what it has"
            }
            _ => return failure,
        };
        let hint = format!(
            "ssh says why; `{probe}` shows whether it gets there, and asks about an unknown host key"
        );
        Failure { what: what.to_owned(), ..failure }.exit(Exit::Failed).hint(hint)
    }

    /// Adds to a failure what the end of the carrying program says about it.
    pub fn explain(mut self, failure: Failure) -> Failure {
        if failure.exit != Exit::Resumable {
            return failure;
        }
        // Its end of the wire is closed: it ends soon, if it has not.
        for _ in 0..20 {
            match self.child.try_wait() {
                Ok(Some(status)) if status.code() == Some(NOT_FOUND) => {
                    return Failure {
                        what: "dchain is not found on the other machine".to_owned(),
                        ..failure
                    }
                    .exit(Exit::Failed)
                    .hint(
                        "install it there, in a folder that is in the PATH of a session without a terminal",
                    );
                }
                Ok(Some(status)) if status.code() == Some(NO_CONNECTION) => {
                    return Failure { what: LOST.to_owned(), ..failure }
                        .hint("ssh says why; the same command again goes on from there");
                }
                Ok(Some(_)) | Err(_) => return failure,
                Ok(None) => thread::sleep(GLANCE),
            }
        }
        self.end();
        failure
    }

    /// Waits for the end of the carrying program, which has nothing left to do.
    pub fn wait(mut self) -> Result<(), Failure> {
        for _ in 0..GLANCES {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(io::Error::other(format!("ssh: {status}")).into()),
                None => thread::sleep(GLANCE),
            }
        }
        // The other side has said that all is done there.
        self.end();
        Ok(())
    }

    /// Ends a program that holds on to a connection which is lost: it would for hours.
    fn end(&mut self) {
        // It may end by itself meanwhile.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the place as a person writes it.
pub fn shown(place: &Place, name: &Path) -> String {
    format!("{}:{}", place.host, quoted(&place.path.join(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<(String, Option<u16>, String)> {
        let place = Place::parse(Path::new(text)).ok()??;
        Some((place.host, place.port, place.path.display().to_string()))
    }

    #[test]
    fn a_place_is_a_host_and_a_folder_and_never_an_option() {
        let some = |host: &str, port, path: &str| Some((host.to_owned(), port, path.to_owned()));
        assert_eq!(parse("ssh://me@host/srv/a b"), some("me@host", None, "/srv/a b"));
        assert_eq!(parse("ssh://host:2222/~/vm"), some("host", Some(2222), "vm"));
        assert_eq!(parse("ssh://[::1]:22/vm"), some("::1", Some(22), "/vm"));
        assert_eq!(parse("ssh://host/~/"), some("host", None, "."));
        let wrong = [
            "ssh://host",
            "ssh:///vm",
            "ssh://-oProxyCommand=x/vm",
            "ssh://-l@host/vm",
            "ssh://ho st/vm",
            "ssh://host:x/vm",
            "ssh://host;reboot/vm",
        ];
        for text in wrong {
            assert!(Place::parse(Path::new(text)).is_err(), "{text}");
        }
        assert_eq!(Place::parse(Path::new("/srv/ssh:")).unwrap(), None);
    }

    #[test]
    fn the_folder_is_one_word_for_the_other_shell() {
        let command = |folder: &[u8]| {
            let command = remote_command(Path::new(OsStr::from_bytes(folder)), true).unwrap();
            String::from_utf8_lossy(command.as_bytes()).into_owned()
        };
        assert_eq!(command(b"/srv/vm"), "dchain store-agent --write --root='/srv/vm'");
        assert_eq!(
            command(b"/a'; rm -r $(x)\n"),
            "dchain store-agent --write --root='/a'\\''; rm -r $(x)\n'"
        );
        assert!(remote_command(Path::new(OsStr::from_bytes(b"/a\0b")), false).is_err());
    }
}
