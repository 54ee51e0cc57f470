//! What the daemon is told: its command line, and the file that it names.

use crate::{
    activation::Given,
    arguments::{self, Address, Arguments, Guest, Switch, TlsMode},
    failure::Failure,
    hooks::Programs,
    options, output,
};
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
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// The file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct Config {
    nbd: Vec<String>,
    control: Option<String>,
    web: Option<String>,
    web_token: Option<PathBuf>,
    state: Option<PathBuf>,
    tls: Option<TlsMode>,
    tls_certificates: Option<PathBuf>,
    tls_verify_peer: Option<Switch>,
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
        let hooks = Hooks { freeze: self.freeze, thaw: self.thaw, timeout: self.hook_timeout };
        let (format, path) = (format.map_err(|what| format!("format: {what}"))?, self.path.0);
        Ok(Named { name, path, format, is_read_only: self.read_only, hooks })
    }
}

impl Config {
    fn read(file: &Path) -> Result<Self, Failure> {
        let text = fs::read_to_string(file).map_err(|e| Error::io("read", e).path(file))?;
        toml::from_str(&text).map_err(|e| wrong(file, e.to_string().trim_end()))
    }
}

fn wrong(file: &Path, what: &str) -> Failure {
    Failure::usage(format!("{}: {what}", file.display()))
}

/// Puts what the file says under what the command line says.
pub fn complete(mut arguments: Arguments, given: &Given) -> Result<Arguments, Failure> {
    if let Some(file) = arguments.config.clone() {
        let config = Config::read(&file)?;
        for (name, mut disk) in config.disks {
            if let Some(path) = disk.vhost_user.take() {
                arguments.vhost_user.push(Guest { disk: name.clone(), path });
            }
            let place = format!("disks.{name}");
            let named = disk.named(name).map_err(|what| wrong(&file, &format!("{place}.{what}")))?;
            if !arguments.disks.iter().any(|one| one.name == named.name) {
                arguments.disks.push(named);
            }
        }
        let address = |text: &String| arguments::address(text);
        let nbd = config.nbd.iter().map(address).collect::<Result<Vec<_>, _>>();
        arguments.nbd.extend(nbd.map_err(|what| wrong(&file, &format!("nbd: {what}")))?);
        let control = config.control.as_deref().map(arguments::control).transpose();
        let control = control.map_err(|what| wrong(&file, &format!("control: {what}")))?;
        arguments.control = arguments.control.or(control);
        let web = config.web.as_deref().map(arguments::loopback).transpose();
        arguments.web = arguments.web.or(web.map_err(|what| wrong(&file, &format!("web: {what}")))?);
        arguments.web_token = arguments.web_token.or(config.web_token);
        arguments.state = arguments.state.or(config.state);
        arguments.tls = arguments.tls.or(config.tls);
        arguments.tls_certificates = arguments.tls_certificates.or(config.tls_certificates);
        arguments.tls_verify_peer = arguments.tls_verify_peer.or(config.tls_verify_peer);
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
    use clap::Parser;

    fn with(text: &str) -> Result<Arguments, Failure> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        let config = file.path().to_str().unwrap();
        let arguments = Arguments::parse_from(["dchaind", "--config", config, "--disk", "a=/other.raw"]);
        complete(arguments, &Given::default())
    }

    #[test]
    fn the_file_names_disks_and_places_and_the_command_line_goes_before() {
        let text = "nbd = ['unix:/run/n']\ncontrol = 'unix:/run/c'\nstate = '/var/s'\n\
                    [disks.a]\npath = '/a.raw'\n[disks.b]\npath = '/b'\nformat = 'raw'\nread-only = true\n\
                    freeze = ['fsfreeze', '-f']\nhook-timeout = 5\n\
                    vhost-user = '/run/b'\n";
        let all = with(text).unwrap();
        assert_eq!((all.nbd.len(), all.control.as_deref()), (1, Some(Path::new("/run/c"))));
        let paths: Vec<_> = all.disks.iter().map(|disk| disk.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["/other.raw", "/b"]);
        assert!(all.disks[1].is_read_only && all.disks[1].format.is_some());
        let hooks = &all.disks[1].hooks;
        assert_eq!((hooks.freeze.len(), hooks.thaw.len(), hooks.timeout), (2, 0, Some(5)));
        assert_eq!(all.vhost_user, [Guest { disk: "b".to_owned(), path: "/run/b".into() }]);
    }

    #[test]
    fn a_mistake_in_the_file_is_named() {
        for (text, what) in [
            ("nbd = ['here']", "unix:PATH"),
            ("nbd = ['unix:/n']\n[disks.b]\npath = '/b'\nformat = 'tar'", "disks.b.format"),
            ("disk = 1", "unknown field"),
            ("control = 'unix:/c'", "--nbd"),
            ("nbd = ['unix:/n']\ntls = 'maybe'", "required"),
        ] {
            let said = with(text).unwrap_err().to_string();
            assert!(said.contains(what), "{said}");
        }
    }
}
