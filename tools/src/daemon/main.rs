//! `dchaind`: holds disks open and serves them until it is told to stop. Arguments, signals and the environment live
//! here; the work is the library's.
#![allow(
    unreachable_pub,
    dead_code,
    reason = "a program's items are all its own, and some modules are dchain's, too"
)]

#[path = "../config.rs"]
mod config;
#[path = "../failure.rs"]
mod failure;
#[path = "../options.rs"]
mod options;
#[path = "../output.rs"]
mod output;
#[path = "../size.rs"]
mod size;

mod activation;
mod arguments;
mod control;
mod hooks;
mod ready;
mod settings;
mod vhost_user;

use activation::Given;
use arguments::{Address, Arguments};
use clap::Parser;
use control::{Door, Places, Web};
use deltachain::{
    export::nbd::{Limits, Listener, Server, Tls},
    service::Service,
};
use failure::{Exit, Failure};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
};
use std::{env, os::unix::net::UnixListener, process::ExitCode, sync::Arc, thread, time::Duration};

/// How long clients may take to get their answers once the program is told to stop.
const PATIENCE: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    deltachain::io::real::raise_descriptors();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // A reader that went away wants no help.
            drop(error.print());
            return if error.use_stderr() { Exit::Usage } else { Exit::Done }.into();
        }
    };
    let served = Given::take().and_then(|given| {
        let arguments = settings::complete(arguments, env::args_os().skip(1), &given)?;
        serve(&arguments, given)
    });
    match served {
        Ok(()) => Exit::Done.into(),
        Err(failure) => {
            output::note(&failure.to_string().replacen("dchain:", "dchaind:", 1));
            failure.exit.into()
        }
    }
}

/// Serves until a signal says to stop.
fn serve(arguments: &Arguments, given: Given) -> Result<(), Failure> {
    // Before anything that a signal should end in order.
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let tls = settings::tls(arguments)?;
    let is_secret = matches!(tls, Tls::Required(_));
    let door = door(arguments, given.control)?;
    let service = Service::start(settings::service(arguments)?, &arguments.disks)?;
    for (name, why) in service.refused() {
        let failure = Failure::from_error(&why);
        if door.is_none() {
            // Nobody could ask for it later.
            return Err(failure);
        }
        let hint = failure.hint.map_or_else(String::new, |hint| format!("\nhint: {hint}"));
        output::note(&format!("dchaind: disk '{name}' is not served: {}{hint}", failure.what));
    }
    let own = arguments.nbd.iter().map(arguments::Address::listen);
    let listeners = given.nbd.into_iter().map(Ok).chain(own).collect::<Result<Vec<_>, _>>()?;
    let places: Vec<_> = listeners.iter().map(place).collect();
    let limits = Limits {
        clients: arguments.max_clients,
        handshake: Duration::from_secs(arguments.max_handshake),
        ..Limits::default()
    };
    let server = Server::start(listeners, Arc::clone(&service) as Arc<_>, limits, tls)?;
    let web = web(arguments)?;
    let guests = vhost_user::Guests::start(&arguments.vhost_user, &service)?;
    let sockets = arguments.vhost_user.iter().map(ToString::to_string);
    let said = places.iter().map(Address::to_string).chain(sockets);
    let said: Vec<_> = said.chain(web.iter().map(Web::to_string)).collect();
    let places = Places { of: absolute(&places)?.into(), is_secret };
    control::serve(door.as_ref(), web, &service, places)?;
    ready::say(&said)?;
    signals.forever().next();
    ready::stopping();
    let is_done = thread::scope(|scope| {
        let clients = scope.spawn(|| server.stop(PATIENCE));
        guests.stop(PATIENCE) & clients.join().unwrap_or(false)
    });
    service.stop(PATIENCE)?;
    if !is_done {
        output::note("dchaind: some clients did not take their answers in time");
    }
    Ok(())
}

/// Opens the control socket, or takes the one that systemd has opened.
fn door(arguments: &Arguments, given: Option<UnixListener>) -> Result<Option<Door>, Failure> {
    Ok(match (given, &arguments.control) {
        (Some(listener), _) => Some(Door::given(listener)?),
        (None, Some(path)) => Some(Door::open(path)?),
        (None, None) => None,
    })
}

/// Opens the port of the web page, if it is asked for.
fn web(arguments: &Arguments) -> Result<Option<Web>, Failure> {
    let Some(address) = arguments.web else { return Ok(None) };
    let kept = || arguments.state.as_ref().map(|state| state.join("web-token"));
    let file = arguments.web_token.clone().or_else(kept);
    let file =
        file.ok_or_else(|| Failure::usage("--web needs --web-token FILE, or --state DIR to keep one in"))?;
    Ok(Some(Web::open(address, &file)?))
}

/// Returns where a listener is.
fn place(listener: &Listener) -> Address {
    let path = || Address::Unix(listener.path().unwrap_or_default().clone());
    listener.address().map_or_else(path, Address::Tcp)
}

/// The same for clients, whose folder is another one.
fn absolute(places: &[Address]) -> Result<Vec<Address>, Failure> {
    let absolute = |place: &Address| match place {
        Address::Unix(path) => Ok(Address::Unix(std::path::absolute(path)?)),
        Address::Tcp(_) => Ok(place.clone()),
    };
    places.iter().map(absolute).collect()
}
