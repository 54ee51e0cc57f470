//! What the daemon is told: its command line, and the file that it names.

use crate::{
    activation::Given,
    arguments::{Address, Arguments, Guest, Switch, TlsMode},
    failure::Failure,
    hooks::Programs,
    options, output,
};
use clap::{Arg, ArgAction, CommandFactory, FromArgMatches, Parser};
use deltachain::{
    base::{Error, name::FileName},
    export::nbd::{Certificates, Tls},
    io::Access,
    job::consolidate::{LivePace, Patience},
    service::{Hooks, Named, Settings},
};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use toml::{Table, Value};

/// What the file has besides options of the command line.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Disks {
    disks: BTreeMap<String, Disk>,
}

/// A disk, as the file and who attaches one say it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Disk {
    path: FileName,
    format: Option<String>,
    #[serde(default)]
    read_only: bool,
    #[serde(default)]
    freeze: Vec<String>,
    #[serde(default)]
    thaw: Vec<String>,
    /// Seconds.
    hook_timeout: Option<u64>,
    /// Sockets are made at the start of the daemon.
    pub vhost_user: Option<PathBuf>,
}

impl Disk {
    /// Returns what the service is to open; fails with what is wrong with its format.
    pub fn named(self, name: String) -> Result<Named, String> {
        let format = self.format.as_deref().map(options::format).transpose();
        if self.hook_timeout == Some(0) {
            return Err(format!("hook-timeout: {}", options::NOT_POSITIVE));
        }
        let hooks = Hooks { freeze: self.freeze, thaw: self.thaw, timeout: self.hook_timeout };
        let (format, path) = (format.map_err(|what| format!("format: {what}"))?, self.path.0);
        Ok(Named { name, path, format, is_read_only: self.read_only, hooks })
    }
}

fn wrong(file: &Path, what: &str) -> Failure {
    Failure::usage(format!("{}: {what}", file.display()))
}

/// Returns the options in the text of a file as the command line has them: words and values are the same.
fn options_of(text: &str) -> Result<Vec<OsString>, String> {
    let table: Table = text.parse().map_err(|e: toml::de::Error| e.to_string())?;
    let command = Arguments::command();
    let mut line = vec![OsString::new()];
    for (name, value) in table.into_iter().filter(|(name, _)| name != "disks") {
        let is_it =
            |known: &&Arg| known.get_long() == Some(&name) && !matches!(name.as_str(), "config" | "disk");
        let known = command.get_arguments().find(is_it);
        let known = known.ok_or_else(|| match name.as_str() {
            "disk" => "disk: a disk is a table, [disks.NAME] with a path".to_owned(),
            _ => format!("'{name}' is no option of dchaind that a file may have"),
        })?;
        let is_flag = matches!(known.get_action(), ArgAction::SetTrue);
        let values = if let Value::Array(values) = value { values } else { vec![value] };
        for value in values {
            let shown = match value {
                Value::Boolean(true) if is_flag => {
                    line.push(format!("--{name}").into());
                    continue;
                }
                Value::Boolean(false) if is_flag => continue,
                Value::String(text) => text,
                Value::Integer(number) => number.to_string(),
                Value::Float(number) => number.to_string(),
                Value::Boolean(is_on) => is_on.to_string(),
                Value::Datetime(_) | Value::Table(_) | Value::Array(_) => {
                    return Err(format!("{name}: has one value, or a list of some"));
                }
            };
            line.push(format!("--{name}={shown}").into());
        }
    }
    // Said here, a mistake is one of the file.
    match Arguments::try_parse_from(&line) {
        Ok(_) => Ok(line),
        Err(error) => {
            let said = error.to_string();
            let said = said.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
            Err(said.split_whitespace().collect::<Vec<_>>().join(" "))
        }
    }
}

/// Puts what the file says under what the command `line`, without the program's name, says.
fn with_file(file: &Path, line: impl Iterator<Item = OsString>) -> Result<Arguments, Failure> {
    let text = fs::read_to_string(file).map_err(|e| Error::io("read", e).path(file))?;
    let Disks { disks } = toml::from_str(&text).map_err(|e| wrong(file, e.to_string().trim_end()))?;
    let options = options_of(&text).map_err(|what| wrong(file, what.trim_end()))?;
    let all =
        Arguments::command().args_override_self(true).try_get_matches_from(options.into_iter().chain(line));
    let arguments = all.and_then(|all| Arguments::from_arg_matches(&all));
    let mut arguments = arguments.map_err(|e| wrong(file, e.to_string().trim_end()))?;
    for (name, mut disk) in disks {
        if let Some(path) = disk.vhost_user.take() {
            arguments.vhost_user.push(Guest { disk: name.clone(), path });
        }
        let place = format!("disks.{name}");
        let named = disk.named(name).map_err(|what| wrong(file, &format!("{place}.{what}")))?;
        if !arguments.disks.iter().any(|one| one.name == named.name) {
            arguments.disks.push(named);
        }
    }
    Ok(arguments)
}

/// Returns what the command `line`, which was read as `arguments`, and the file that it names say.
pub fn complete(
    mut arguments: Arguments,
    line: impl Iterator<Item = OsString>,
    given: &Given,
) -> Result<Arguments, Failure> {
    if let Some(file) = arguments.config.take() {
        arguments = with_file(&file, line)?;
    }
    let is_idle = arguments.disks.is_empty()
        && arguments.control.is_none()
        && arguments.web.is_none()
        && given.control.is_none();
    if is_idle {
        return Err(Failure::usage("no --disk to serve, and no --control to attach one"));
    }
    if arguments.nbd.is_empty() && given.nbd.is_empty() && arguments.vhost_user.is_empty() {
        return Err(Failure::usage("no --nbd and no --vhost-user that clients could come to"));
    }
    refuse_twice(&arguments.nbd)?;
    Ok(arguments)
}

fn refuse_twice(places: &[Address]) -> Result<(), Failure> {
    let is_again = |(at, place): (usize, &Address)| places.iter().take(at).any(|other| other == place);
    match places.iter().enumerate().find(|one| is_again(*one)) {
        Some((_, place)) => Err(Failure::usage(format!("{place} is named twice"))),
        None => Ok(()),
    }
}

/// Returns what the service works with.
pub fn service(arguments: &Arguments) -> Result<Settings, Failure> {
    let host = options::host();
    let opening =
        arguments.references.opening(host.as_ref(), Access::Write)?.with_ledger(options::ledger(&host));
    let state = arguments.state.as_deref().map(std::path::absolute).transpose()?;
    let patience = match arguments.target_timeout {
        0 => Patience::Endless,
        seconds => Patience::WhereApart(Duration::from_secs(seconds)),
    };
    let pace = LivePace { patience, ..LivePace::USUAL };
    let (resumes, quiesce) = (!arguments.no_resume, Arc::new(Programs));
    Ok(Settings { host, opening, state, resumes, pace, quiesce })
}

/// Returns whether clients of NBD speak TLS, and reads the certificates.
pub fn tls(arguments: &Arguments) -> Result<Tls, Failure> {
    let Some(folder) = &arguments.tls_certificates else {
        return match arguments.tls {
            None | Some(TlsMode::Off) => Ok(Tls::Off),
            Some(_) => Err(Failure::usage("--tls needs --tls-certificates DIR")),
        };
    };
    if arguments.tls == Some(TlsMode::Off) {
        return Ok(Tls::Off);
    }
    let certificates = Certificates::read(folder, arguments.tls_verify_peer != Some(Switch::Off))?;
    warn_of_open_key(&folder.join(Certificates::KEY));
    // Who names certificates and no mode wants them used.
    Ok(match arguments.tls {
        Some(TlsMode::Allowed) => Tls::Allowed(certificates),
        _ => Tls::Required(certificates),
    })
}

/// A key that others can read is no secret: it is used all the same, since a folder that another group administers is no mistake.
fn warn_of_open_key(key: &Path) {
    let mode = fs::metadata(key).map(|found| found.permissions().mode());
    if mode.is_ok_and(|mode| mode & 0o077 != 0) {
        let key = key.display();
        output::note(&format!("dchaind: warning: {key} can be read by others (chmod 600 closes it)"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(text: &str, more: &[&str]) -> Result<Arguments, Failure> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        let line = [&["dchaind", "--config", file.path().to_str().unwrap(), "--disk", "a=/other.raw"], more];
        let line: Vec<OsString> = line.concat().into_iter().map(Into::into).collect();
        let arguments = Arguments::try_parse_from(&line).unwrap();
        complete(arguments, line.into_iter().skip(1), &Given::default())
    }

    #[test]
    fn the_file_names_disks_and_places_and_the_command_line_goes_before() {
        let text = "nbd = ['unix:/run/n']\ncontrol = 'unix:/run/c'\nstate = '/var/s'\n\
                    [disks.a]\npath = '/a.raw'\n[disks.b]\npath = '/b'\nformat = 'raw'\nread-only = true\n\
                    freeze = ['fsfreeze', '-f']\nhook-timeout = 5\n\
                    vhost-user = '/run/b'\n";
        let all = with(text, &["--nbd", "unix:/m", "--state", "/s"]).unwrap();
        assert_eq!((all.nbd.len(), all.control.as_deref()), (2, Some(Path::new("/run/c"))));
        assert_eq!(all.state.as_deref(), Some(Path::new("/s")));
        let paths: Vec<_> = all.disks.iter().map(|disk| disk.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["/other.raw", "/b"]);
        assert!(all.disks[1].is_read_only && all.disks[1].format.is_some());
        let hooks = &all.disks[1].hooks;
        assert_eq!((hooks.freeze.len(), hooks.thaw.len(), hooks.timeout), (2, 0, Some(5)));
        assert_eq!(all.vhost_user, [Guest { disk: "b".to_owned(), path: "/run/b".into() }]);
    }

    #[test]
    fn the_file_may_say_whatever_the_command_line_says() {
        let text = "nbd = 'unix:/n'\nmax-clients = 7\nmax-handshake = 3\ntarget-timeout = 0\n\
                    allow-dir = ['/x', '/y']\nmax-depth = 9\nmemory = '64M'\nno-resume = true\ntls = 'off'\n";
        let all = with(text, &["--max-clients", "8", "--allow-dir", "/z"]).unwrap();
        assert_eq!((all.max_clients, all.max_handshake, all.target_timeout), (8, 3, 0));
        assert_eq!(all.references.allow_dir, ["/x", "/y", "/z"].map(PathBuf::from));
        assert_eq!((all.references.max_depth, all.no_resume, all.tls), (9, true, Some(TlsMode::Off)));
        assert!(!with("nbd = 'unix:/n'\nno-resume = false", &[]).unwrap().no_resume);
        // Every option but those that mean the file itself, or are tables there.
        for option in Arguments::command().get_arguments().filter_map(Arg::get_long) {
            let said = options_of(&format!("{option} = {{}}")).unwrap_err();
            assert_eq!(
                said.starts_with(&format!("{option}: has one")),
                !matches!(option, "config" | "disk"),
                "{said}"
            );
        }
    }

    #[test]
    fn a_mistake_in_the_file_is_named() {
        for (text, what) in [
            ("nbd = ['here']", "unix:PATH"),
            ("nbd = ['unix:/n']\n[disks.b]\npath = '/b'\nformat = 'tar'", "disks.b.format"),
            ("nbd = ['unix:/n']\n[disks.b]\npath = '/b'\nhook-timeout = 0", "disks.b.hook-timeout"),
            ("[disks.b]\npath = '/b'\nreadonly = true", "unknown field `readonly`"),
            ("disk = 1", "[disks.NAME]"),
            ("help = true", "'help' is no option"),
            ("clients = 1", "'clients' is no option"),
            ("max-clients = 0", "'--max-clients <N>': at least 1"),
            ("no-resume = 'yes'", "unexpected value 'yes'"),
            ("state = ['/a', '/b']", "'--state <DIR>' cannot be used multiple times"),
            ("control = 'unix:/c'", "--nbd"),
            ("nbd = ['unix:/n']\ntls = 'maybe'", "required"),
        ] {
            let said = with(text, &[]).unwrap_err().to_string();
            assert!(said.contains(what), "{said}");
        }
    }
}
