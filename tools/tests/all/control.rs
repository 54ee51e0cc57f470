//! Disks that are reshaped while clients of NBD use them: the daemon's control socket, its client, and what a kill or
//! a stop leaves. qemu writes, and qemu says what is there afterwards.

use super::{
    daemon::Daemon,
    dchain::{Run, command, dchain, done},
    foreign::{Scratch, assert_same},
};
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    process::Stdio,
    time::{Duration, Instant},
};

pub(super) const MIB: usize = 1 << 20;
const DISK: usize = 24 * MIB;

/// `top` on `base`: 16 MiB of ones, of which twos hide 8.
pub(super) fn disk() -> Scratch {
    let folder = Scratch::new();
    folder.qemu_img("create -q -f qcow2 base 24M");
    folder.qemu_io("qcow2", "base", &["write -q -P 1 0 16M"]);
    folder.qemu_img("create -q -f qcow2 -F qcow2 -b base top");
    folder.qemu_io("qcow2", "top", &["write -q -P 2 0 8M"]);
    folder
}

/// What a disk shows to which that was written: offset, length and byte.
pub(super) fn expected(writes: &[(usize, usize, u8)]) -> Vec<u8> {
    let mut bytes = [vec![2; 8 * MIB], vec![1; 8 * MIB], vec![0; DISK - 16 * MIB]].concat();
    for (at, length, byte) in writes {
        bytes[*at..at + length].fill(*byte);
    }
    bytes
}

fn serve(folder: &Scratch) -> Daemon {
    Daemon::start_with(folder, &["vm=top"], &["--control", "unix:c", "--state", "state"])
}

/// Asks the daemon of the folder.
pub(super) fn ask(folder: &Scratch, arguments: &str) -> Run {
    let arguments: Vec<_> = arguments.split(' ').chain(["--socket", "c"]).collect();
    dchain(&folder.path(), &arguments)
}

pub(super) fn answer(folder: &Scratch, arguments: &str) -> Value {
    let run = ask(folder, &format!("{arguments} --output json"));
    assert_eq!(run.code, Some(0), "{arguments}: {}{}", run.out, run.err);
    run.json()
}

/// So slow that a fold moves its first block at once, and is told to go faster, to wait or to end long before it is over.
const SLOW: &str = "128K";

pub(super) fn start_fold(folder: &Scratch) -> u64 {
    let job = answer(folder, &format!("consolidate --disk vm --yes --detach --rate {SLOW}"));
    job["id"].as_u64().unwrap()
}

/// Waits until a job is somewhere in its middle.
pub(super) fn wait_for_bytes(folder: &Scratch, id: u64) {
    let began = Instant::now();
    loop {
        let job = answer(folder, &format!("job show {id}"));
        if job["progress"]["transferred"].as_u64().unwrap() >= 1 << 20 {
            return;
        }
        assert!(job["state"] != "concluded" && began.elapsed() < Duration::from_mins(1), "{job}");
    }
}

/// A job that nobody is at is told of by its journal, wherever it was begun.
#[test]
fn con_10_jobs_that_were_cut_off_are_listed() {
    let folder = disk();
    let daemon = serve(&folder);
    let id = start_fold(&folder);
    wait_for_bytes(&folder, id);
    let jobs = answer(&folder, "job list");
    assert_eq!(jobs.as_array().unwrap().len(), 1, "{jobs}");
    assert!(daemon.stop().0.success());
    let listed = dchain(&folder.path(), &["job", "list", ".", "top", "--output", "json"]).json();
    let [left] = &listed.as_array().unwrap()[..] else { panic!("{listed}") };
    assert!(left["top"].as_str().unwrap().ends_with("/top") && left["is-live"] == true, "{left}");
    assert!(dchain(&folder.path(), &["job", "list", "top"]).out.contains("goes on with it"));
    // A daemon with another disk in the folder sees it, too.
    folder.qemu_img("create -q -f qcow2 other 1M");
    let _daemon = Daemon::start_with(&folder, &["other=other"], &["--control", "unix:c"]);
    let jobs = answer(&folder, "job list");
    assert_eq!(jobs, listed);
    done(&folder.path(), &["consolidate", "top", "--yes"]);
    assert_eq!(answer(&folder, "job list"), json!([]));
}

/// TOP and what lies below it stay; the daemon's book names the new head, also over a restart.
#[test]
fn con_5_a_disk_is_folded_into_a_new_image_under_a_client() {
    let folder = disk();
    let daemon = serve(&folder);
    let fold = "consolidate --disk vm --new fresh -O qcow2 -o cluster_size=4k --yes --detach --rate";
    let job = answer(&folder, &format!("{fold} {SLOW}"));
    let id = job["id"].as_u64().unwrap();
    wait_for_bytes(&folder, id);
    write(&folder, &daemon, &["write -q -P 7 0 1M", "flush"]);
    answer(&folder, &format!("job speed {id} 0"));
    let job = answer(&folder, &format!("job wait {id}"));
    assert_eq!((job["state"].as_str(), &job["error"]), (Some("concluded"), &Value::Null));
    write(&folder, &daemon, &["write -q -P 8 20M 64k"]);
    assert!(daemon.stop().0.success());
    let daemon = serve(&folder);
    write(&folder, &daemon, &["write -q -P 9 21M 64k"]);
    assert!(daemon.stop().0.success());
    let writes = [(0, MIB, 7), (20 * MIB, 64 << 10, 8), (21 * MIB, 64 << 10, 9)];
    assert_same(&folder.flat("qcow2", "fresh"), &expected(&writes), "the new image");
    for name in ["fresh", "top", "base"] {
        folder.qemu_img(&format!("check -q {name}"));
    }
    assert!(!folder.qemu_img("info fresh").contains("backing"));
}

fn write(folder: &Scratch, daemon: &Daemon, commands: &[&str]) {
    folder.qemu_io("raw", &daemon.uri("vm"), commands);
}

/// The disk has one layer, is sound, and shows that.
fn check_end(folder: &Scratch, writes: &[(usize, usize, u8)]) {
    assert_same(&folder.flat("qcow2", "top"), &expected(writes), "the disk");
    folder.qemu_img("check -q top");
    assert!(!folder.file("base").exists());
}

#[test]
fn con_1_a_disk_is_folded_under_a_client_that_writes() {
    let folder = disk();
    let daemon = serve(&folder);
    let id = start_fold(&folder);
    wait_for_bytes(&folder, id);
    write(&folder, &daemon, &["write -q -P 7 0 1M", "write -q -z 12M 1M", "flush"]);
    write(&folder, &daemon, &["write -q -P 8 7M 2M"]);
    answer(&folder, &format!("job speed {id} 0 --share 0.9 --latency-target 20"));
    let job = answer(&folder, &format!("job wait {id}"));
    assert_eq!((job["state"].as_str(), &job["error"]), (Some("concluded"), &Value::Null));
    assert!(job["report"]["pause"].as_f64().is_some_and(|pause| pause < 30.0), "{job}");
    // What it did is told for as long as it is known.
    let told = |what: &str| job["progress"][what].as_u64();
    assert!(told("size") > Some(0) && told("transferred") >= told("size"), "{job}");
    write(&folder, &daemon, &["write -q -P 9 20M 64k"]);
    assert_eq!(answer(&folder, "disk show vm")["layers"].as_array().unwrap().len(), 1);
    assert!(daemon.stop().0.success());
    let last = (20 * MIB, 64 << 10, 9);
    check_end(&folder, &[(0, MIB, 7), (12 * MIB, MIB, 0), (7 * MIB, 2 * MIB, 8), last]);
}

#[test]
fn con_10_a_job_is_paused_resumed_and_given_up_by_its_number() {
    let folder = disk();
    let daemon = serve(&folder);
    let id = start_fold(&folder);
    wait_for_bytes(&folder, id);
    assert_eq!(ask(&folder, "consolidate --disk vm --yes").code, Some(69));
    assert_eq!(answer(&folder, &format!("job pause {id}"))["state"], "paused");
    write(&folder, &daemon, &["write -q -P 7 3M 1M"]);
    assert_eq!(answer(&folder, &format!("job resume {id}"))["state"], "running");
    while answer(&folder, &format!("job show {id}"))["progress"]["elapsed"].as_f64() < Some(0.5) {}
    let number = id.to_string();
    let follow = ["job", "wait", number.as_str(), "--progress=json", "--socket", "c"];
    let mut watching = command(&folder.path(), &follow).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watching.stderr.take().unwrap()).lines();
    let mut rates = lines
        .by_ref()
        .map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap()["rate"].as_u64().unwrap());
    // Who comes later sees how fast it was, not how much there was when it came.
    let rate = rates.find(|rate| *rate > 0).unwrap();
    assert!(rate < 8 << 20, "{rate}");
    let given_up = ask(&folder, &format!("job cancel {id}"));
    let lost = format!("no points in time any more: {}", folder.file("base").display());
    assert!(given_up.code == Some(0) && given_up.out.contains(&lost), "{}", given_up.out);
    lines.for_each(drop);
    assert_eq!(watching.wait().unwrap().code(), Some(75));
    let listed = ask(&folder, "job list").out;
    assert!(listed.contains("dchain consolidate --disk vm goes on with it"), "{listed}");
    let job = answer(&folder, &format!("job show {id}"));
    assert_eq!(
        (job["state"].as_str(), job["error"]["kind"].as_str()),
        (Some("concluded"), Some("interrupted"))
    );
    assert!(job["plan"]["lost"][0]["layer"].as_str().unwrap().ends_with("base"));
    assert_eq!(ask(&folder, &format!("job pause {id}")).code, Some(64));
    write(&folder, &daemon, &["write -q -P 8 15M 1M"]);
    assert!(daemon.stop().0.success());
    let writes = [(3 * MIB, MIB, 7), (15 * MIB, MIB, 8)];
    assert_same(&folder.flat("qcow2", "top"), &expected(&writes), "the disk");
    // What is left of the job is gone: folding is a job of its own.
    let plan = done(&folder.path(), &["consolidate", "--dry-run", "--output", "json", "top"]).json();
    assert_eq!(plan["is-resumed"], false);
}

/// ^C on a job in use is no reason to end it.
#[test]
fn con_10_who_stops_watching_leaves_the_job_running() {
    let folder = disk();
    let _daemon = serve(&folder);
    let arguments =
        ["consolidate", "--disk", "vm", "--yes", "--rate", SLOW, "--deadline", "60", "--socket", "c"];
    let mut watching = command(&folder.path(), &arguments).spawn().unwrap();
    let began = Instant::now();
    while answer(&folder, "job list").as_array().unwrap().is_empty() {
        assert!(began.elapsed() < Duration::from_mins(1));
    }
    wait_for_bytes(&folder, 1);
    folder.run("kill", &format!("-INT {}", watching.id()));
    assert_eq!(watching.wait().unwrap().code(), Some(75));
    assert_eq!(answer(&folder, "job show 1")["state"], "running");
    answer(&folder, "job speed 1 0");
    assert_eq!(ask(&folder, "job wait 1").code, Some(0));
}

#[test]
fn con_6_a_killed_daemon_goes_on_with_its_job_and_has_what_was_flushed() {
    let folder = disk();
    let daemon = serve(&folder);
    let id = start_fold(&folder);
    wait_for_bytes(&folder, id);
    write(&folder, &daemon, &["write -q -P 7 0 1M", "write -q -P 8 6M 3M", "flush"]);
    // SIGKILL.
    drop(daemon);
    let daemon = serve(&folder);
    write(&folder, &daemon, &["write -q -P 9 1M 1M", "read -P 7 0 1M", "read -P 8 6M 3M"]);
    assert_eq!(answer(&folder, &format!("job speed {id} 0"))["id"], id);
    let job = answer(&folder, &format!("job wait {id}"));
    assert_eq!((&job["error"], &job["plan"]["is-resumed"]), (&Value::Null, &json!(true)), "{job}");
    assert!(daemon.stop().0.success());
    check_end(&folder, &[(0, MIB, 7), (6 * MIB, 3 * MIB, 8), (MIB, MIB, 9)]);
}

#[test]
fn con_10_a_stop_leaves_the_job_to_the_next_start() {
    let folder = disk();
    let daemon = serve(&folder);
    let id = start_fold(&folder);
    wait_for_bytes(&folder, id);
    write(&folder, &daemon, &["write -q -P 7 0 1M"]);
    let (status, after) = daemon.stop();
    assert!(status.success() && after < Duration::from_mins(1), "{status} after {after:?}");
    let daemon = serve(&folder);
    assert_eq!(answer(&folder, &format!("job speed {id} 0"))["id"], id);
    let job = answer(&folder, &format!("job wait {id}"));
    assert_eq!((&job["error"], &job["plan"]["is-resumed"]), (&Value::Null, &json!(true)), "{job}");
    assert!(job["report"]["copied-bytes"].as_u64().unwrap() < 8 << 20, "{job}");
    assert!(daemon.stop().0.success());
    check_end(&folder, &[(0, MIB, 7)]);
}

#[test]
fn disks_come_and_go_and_say_why_they_are_not_served() {
    let folder = disk();
    let daemon = Daemon::start_with(&folder, &[], &["--control", "unix:c", "--state", "state"]);
    let mode = folder.file("c").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let said = ask(&folder, "disk attach vm=nothing");
    assert_eq!(said.code, Some(1), "{}", said.err);
    ask(&folder, "disk attach vm=top");
    assert!(ask(&folder, "disk list").out.contains("top (24 MiB, 2 layers)"));
    write(&folder, &daemon, &["write -q -P 7 0 1M"]);
    assert_eq!(ask(&folder, "disk detach other").code, Some(1));
    let head = answer(&folder, "snapshot --disk vm=monday");
    assert!(head["taken"][0]["head"].as_str().unwrap().ends_with("monday"));
    write(&folder, &daemon, &["write -q -P 8 0 64k"]);
    assert!(daemon.stop().0.success());
    // The command line names another image than the daemon's own book.
    let daemon = Daemon::start_with(&folder, &["vm=base"], &["--control", "unix:c", "--state", "state"]);
    let vm = answer(&folder, "disk show vm");
    assert_eq!((&vm["is-served"], vm["error"]["kind"].as_str()), (&json!(false), Some("policy")));
    assert!(daemon.stop().0.success());
    let daemon = Daemon::start_with(&folder, &["vm=top"], &["--control", "unix:c", "--state", "state"]);
    write(&folder, &daemon, &["read -P 8 0 64k", "read -P 7 64k 960k"]);
    assert!(ask(&folder, "disk detach vm").code == Some(0));
    assert_eq!(answer(&folder, "disk list"), json!([]));
    let gone = dchain(&folder.path(), &["job", "list", "--socket", "nowhere"]);
    assert!(gone.code == Some(1) && gone.err.contains("hint: "), "{}", gone.err);
}

/// One request by hand: status and body.
fn request(folder: &Scratch, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(folder.file("c")).unwrap();
    let length = body.len();
    let request = format!("{method} {path} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// Whether `value` is what `schema` describes; says where it is not.
fn fits(all: &Value, schema: &Value, value: &Value, place: &str) -> Result<(), String> {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.rsplit('/').next().unwrap();
        return fits(all, &all["components"]["schemas"][name], value, place);
    }
    if let Some(any) = schema["anyOf"].as_array() {
        let tried: Vec<_> = any.iter().map(|one| fits(all, one, value, place)).collect();
        return if tried.iter().any(Result::is_ok) { Ok(()) } else { tried.into_iter().next().unwrap() };
    }
    let is_right = match schema["type"].as_str().unwrap() {
        "null" => value.is_null(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64(),
        "number" => value.is_number(),
        "array" => value.is_array(),
        _ => value.is_object(),
    };
    let is_listed = schema["enum"].as_array().is_none_or(|all| all.contains(value));
    if !is_right || !is_listed {
        return Err(format!("{place}: {value} is not {schema}"));
    }
    for (at, one) in value.as_array().into_iter().flatten().enumerate() {
        fits(all, &schema["items"], one, &format!("{place}[{at}]"))?;
    }
    let (Some(fields), Some(known)) = (value.as_object(), schema["properties"].as_object()) else {
        return Ok(());
    };
    for name in schema["required"].as_array().into_iter().flatten() {
        if !fields.contains_key(name.as_str().unwrap()) {
            return Err(format!("{place}: {name} is missing"));
        }
    }
    fields.iter().try_for_each(|(name, one)| match known.get(name) {
        Some(schema) => fits(all, schema, one, &format!("{place}.{name}")),
        None => Err(format!("{place}.{name} is not described")),
    })
}

#[test]
fn what_the_daemon_answers_is_what_its_description_says() {
    let folder = disk();
    let _daemon = serve(&folder);
    let (_, text) = request(&folder, "GET", "/v1/openapi.json", "");
    let all: Value = serde_json::from_str(&text).unwrap();
    let into = json!({ "dry-run": true }).to_string();
    let slow = json!({ "rate": 1 << 17 }).to_string();
    std::fs::create_dir(folder.file("store")).unwrap();
    let store = json!({ "store": folder.file("store"), "dry-run": true }).to_string();
    for (method, route, path, body, status) in [
        ("get", "/v1/disks", "/v1/disks", "", 200),
        ("get", "/v1/disks/{name}", "/v1/disks/vm", "", 200),
        ("get", "/v1/disks/{name}", "/v1/disks/none", "", 404),
        ("post", "/v1/disks/{name}/attach", "/v1/disks/vm/attach", "{\"path\": \"/x\"}", 409),
        ("post", "/v1/disks/{name}/attach", "/v1/disks/x/attach", "{\"path\": \"x\"}", 400),
        ("post", "/v1/disks/{name}/consolidate", "/v1/disks/vm/consolidate", &into, 200),
        ("post", "/v1/disks/{name}/consolidate", "/v1/disks/vm/consolidate", "{\"inot\": 1}", 400),
        ("post", "/v1/disks/{name}/migrate", "/v1/disks/vm/migrate", &store, 200),
        ("post", "/v1/disks/{name}/migrate", "/v1/disks/vm/migrate", "{\"store\": \"store\"}", 400),
        ("post", "/v1/disks/{name}/consolidate", "/v1/disks/vm/consolidate", &slow, 200),
        ("post", "/v1/disks/{name}/detach", "/v1/disks/vm/detach", "{\"force\": true}", 409),
        ("get", "/v1/jobs", "/v1/jobs", "", 200),
        ("get", "/v1/cut-off", "/v1/cut-off", "", 200),
        ("get", "/v1/jobs/{id}", "/v1/jobs/1", "", 200),
        ("get", "/v1/jobs/{id}", "/v1/jobs/x", "", 400),
        ("post", "/v1/jobs/{id}/pause", "/v1/jobs/1/pause", "", 200),
        ("post", "/v1/jobs/{id}/resume", "/v1/jobs/1/resume", "", 200),
        ("post", "/v1/jobs/{id}/speed", "/v1/jobs/1/speed", "{\"rate\": 0}", 200),
        ("get", "/v1/jobs/{id}/wait", "/v1/jobs/1/wait?timeout=60", "", 200),
        ("post", "/v1/jobs/{id}/cancel", "/v1/jobs/1/cancel", "", 400),
        ("post", "/v1/snapshot", "/v1/snapshot", "{\"disks\": [{\"name\": \"vm\"}]}", 200),
        ("post", "/v1/backups", "/v1/backups", "{\"disks\": [\"vm\"]}", 200),
        ("post", "/v1/backups", "/v1/backups", "{\"disks\": [\"none\"]}", 404),
        ("get", "/v1/backups", "/v1/backups", "", 200),
        ("post", "/v1/backups/{id}/end", "/v1/backups/b2/end", "", 200),
        ("post", "/v1/backups/{id}/end", "/v1/backups/b2/end", "", 404),
        ("get", "/v1/disks/{name}/diff", "/v1/disks/vm/diff?granularity=65536", "", 200),
        ("get", "/v1/disks/{name}/diff", "/v1/disks/vm/diff?from=none", "", 400),
        ("post", "/v1/disks/{name}/revert", "/v1/disks/vm/revert", "{\"layer\": \"top\"}", 200),
        ("post", "/v1/disks/{name}/revert", "/v1/disks/vm/revert", "{\"layer\": \"none\"}", 400),
        ("get", "/v1/disks", "/v1/nothing", "", 404),
        ("get", "/v1/disks", "/v1/snapshot", "", 405),
    ] {
        let (code, text) = request(&folder, &method.to_uppercase(), path, body);
        assert_eq!(code, status, "{method} {path}: {text}");
        let answers = &all["paths"][route][method]["responses"];
        let how = if code == 200 { &answers["200"] } else { &answers["default"] };
        let schema = &how["content"]["application/json"]["schema"];
        fits(&all, schema, &serde_json::from_str(&text).unwrap(), path).unwrap();
    }
    let (code, figures) = request(&folder, "GET", "/metrics", "");
    assert!(code == 200 && figures.contains("deltachain_disk_layers{disk=\"vm\"} 2\n"), "{figures}");
    assert!(
        figures.contains("deltachain_job_concluded{disk=\"vm\",job=\"1\",end=\"done\"} 1\n"),
        "{figures}"
    );
}

#[test]
fn events_tell_of_jobs_as_they_go_on() {
    let folder = disk();
    let _daemon = serve(&folder);
    let mut stream = UnixStream::connect(folder.file("c")).unwrap();
    stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
    write!(stream, "GET /v1/events HTTP/1.0\r\n\r\n").unwrap();
    let mut said = String::new();
    let mut wait_for = |what: &str| {
        let mut bytes = [0; 4096];
        while !said.contains(what) {
            let read = stream.read(&mut bytes).unwrap();
            assert!(read > 0, "{said}");
            said.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
        }
    };
    wait_for("event: hello");
    let id = start_fold(&folder);
    wait_for("event: progress");
    answer(&folder, &format!("job speed {id} 0"));
    wait_for("\"concluded\"");
}
