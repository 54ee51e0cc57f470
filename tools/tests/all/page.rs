//! The daemon's web page: who gets to see it, and what is seen of it in a browser.

use super::{
    browser::{Browser, http},
    daemon::{Daemon, Hand},
    dchain::dchain,
    foreign::Scratch,
};
use serde_json::json;
use std::{io::Write, net::TcpStream, os::unix::fs::PermissionsExt, process::Command};

/// Names that would be markup if they were not text.
const IMAGE: &str = "a<script>document.title='owned'<b>&amp;.qcow2";
const DISK: &str = "vm<i>1";

/// Two disks over one base; one of them has a long name, and layers to fold.
fn disks() -> Scratch {
    let folder = Scratch::new();
    folder.qemu_img("create -q -f qcow2 base.qcow2 24M");
    folder.qemu_io("qcow2", "base.qcow2", &["write -q -P 1 0 16M"]);
    let long = format!("{}.qcow2", "a-name-without-an-end-".repeat(8));
    for (child, parent) in [("low.qcow2", "base.qcow2"), (IMAGE, "low.qcow2"), (&long, "base.qcow2")] {
        let made =
            folder.try_run("qemu-img", ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", parent, child]);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
    folder.qemu_io("qcow2", IMAGE, &["write -q -P 2 0 8M"]);
    folder
}

struct Seen {
    daemon: Daemon,
    port: u16,
    token: String,
}

fn serve(folder: &Scratch) -> Seen {
    let long = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let long = long.map(|name| name.into_string().unwrap()).find(|name| name.starts_with("a-name")).unwrap();
    let disks = [format!("{DISK}={IMAGE}"), format!("other={long},read-only")];
    let disks: Vec<_> = disks.iter().map(String::as_str).collect();
    let places = ["--web", "127.0.0.1:0", "--state", "state", "--control", "unix:c"];
    let daemon = Daemon::start_with(folder, &disks, &places);
    let port = daemon.said.iter().find_map(|line| line.strip_prefix("listening http://127.0.0.1:")).unwrap();
    let port = port.parse().unwrap();
    let file = folder.file("state/web-token");
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let token = std::fs::read_to_string(file).unwrap().trim().to_owned();
    assert!(!daemon.said.iter().any(|line| line.contains(&token)), "said aloud");
    Seen { daemon, port, token }
}

#[test]
fn over_tcp_nothing_is_told_or_done_without_the_token() {
    let folder = disks();
    let Seen { daemon: _daemon, port, token } = serve(&folder);
    let host = format!("Host: 127.0.0.1:{port}\r\n");
    let proof = format!("Authorization: Bearer {token}\r\n");
    let ask =
        |method: &str, path: &str, headers: &str| http(port, method, path, headers, "{\"force\": true}").0;
    for path in ["/", "/v1/disks", "/v1/events", "/v1/openapi.json", "/metrics", "/nothing"] {
        assert_eq!(ask("GET", path, &host), 401, "{path}");
        assert_eq!(ask("GET", path, &format!("Host: evil.example:{port}\r\n{proof}")), 403, "{path}");
        assert_eq!(ask("OPTIONS", path, &format!("{host}Origin: http://evil.example\r\n")), 403, "{path}");
    }
    let detach = "/v1/disks/other/detach";
    // As a form on another site would have it, with all that a browser adds by itself.
    let form = format!("{host}Content-Type: text/plain\r\nCookie: token={token}\r\n");
    assert_eq!(ask("POST", detach, &form), 401);
    assert_eq!(ask("POST", detach, &format!("{form}{proof}Origin: http://evil.example\r\n")), 403);
    assert_eq!(ask("POST", detach, &format!("{host}Authorization: Bearer {}\r\n", &token[1..])), 401);
    let (status, head, page) = http(port, "GET", "/", &host, "");
    assert!(status == 401 && page.contains("<title>deltachain</title>") && !page.contains("NONCE"));
    let head = head.to_lowercase();
    assert!(head.contains("content-security-policy: default-src 'none'; script-src 'nonce-"), "{head}");
    assert!(head.contains("cache-control: no-store") && !head.contains("access-control"), "{head}");
    assert_eq!(ask("GET", "/v1/disks", &(host.clone() + &proof)), 200);
    let own = format!("{host}{proof}Origin: http://127.0.0.1:{port}\r\n");
    assert_eq!(ask("POST", detach, &own), 200);
}

#[test]
fn who_shows_no_token_makes_room_for_who_does() {
    let folder = disks();
    let Seen { daemon: _daemon, port, token } = serve(&folder);
    // As many as the port has room for.
    let slow = (0..32).map(|_| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.write_all(b"GET / HT").unwrap();
        stream
    });
    let slow: Vec<_> = slow.collect();
    let headers = format!("Host: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n");
    assert_eq!(http(port, "GET", "/v1/disks", &headers, "").0, 200);
    drop(slow);
    // What others wrote of the server refuses in JSON, too.
    let (status, _, body) = http(port, "GET", "/v1/disks/%ff", &headers, "");
    let refusal: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, refusal["kind"].as_str()), (400, Some("invalid")));
}

#[test]
fn the_port_is_on_this_machine_and_its_token_is_nobodys_else() {
    let folder = disks();
    let start = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dchaind"));
        let output =
            command.current_dir(folder.path()).args(["--nbd", "unix:s"]).args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(start(&["--web", "0.0.0.0:0", "--web-token", "t"]).0, Some(64));
    assert_eq!(start(&["--web", "127.0.0.1:0"]).0, Some(64));
    std::fs::write(folder.file("t"), "a-token-that-is-long-enough").unwrap();
    std::fs::set_permissions(folder.file("t"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let (code, said) = start(&["--web", "127.0.0.1:0", "--web-token", "t"]);
    assert!(
        code == Some(77) && said.contains("read by others") && !said.contains("long-enough"),
        "{code:?} {said}"
    );
}

#[test]
fn who_crowds_the_port_takes_nothing_from_guests() {
    let folder = disks();
    let Seen { daemon, port, token } = serve(&folder);
    let before = daemon.descriptors();
    // As many as fit in the queue of the system besides.
    let crowd: Vec<_> =
        (0..120).map(|_| std::net::TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    let mut guest = Hand::enter(&daemon, "other");
    guest.request(0, 0, 512);
    assert_eq!((guest.error(), guest.take(512)), (0, vec![1; 512]));
    assert!(daemon.descriptors() < before + 40, "{} descriptors", daemon.descriptors());
    drop(crowd);
    let headers = format!("Host: localhost:{port}\r\nAuthorization: Bearer {token}\r\n");
    assert_eq!(http(port, "GET", "/v1/disks", &headers, "").0, 200);
}

const TEXT: &str = "return document.body.innerText";

#[test]
fn the_page_shows_disks_and_a_job_that_moves_and_lets_it_be_stopped() {
    let folder = disks();
    let Seen { daemon, port, token } = serve(&folder);
    let mut guest = Hand::enter(&daemon, DISK);
    let browser = Browser::start();
    browser.open(&format!("http://127.0.0.1:{port}/#token={token}"));
    browser.wait("return document.querySelectorAll('[data-disk]').length === 2");
    let fold = ["consolidate", "--disk", DISK, "--into", "low.qcow2", "--yes", "--detach", "--rate", "128K"];
    let started = dchain(&folder.path(), &[&fold[..], &["--socket", "c"]].concat());
    assert_eq!(started.code, Some(0), "{}", started.err);
    let percent = "return document.querySelector('.percent')?.innerText ?? null";
    let first = browser.wait(percent);
    let began = browser.wait(&format!("const p = (() => {{ {percent} }})(); return p !== {first} && p"));
    let number = |text: &serde_json::Value| {
        text.as_str().unwrap().trim_end_matches(['%', '\u{a0}']).parse::<u32>().unwrap()
    };
    assert!(number(&first) < number(&began), "{first} {began}");
    // How long guests wait is told while they ask for something.
    let asked = std::time::Instant::now();
    while browser.run("return document.body.innerText.includes('99 % within')") == false {
        assert!(asked.elapsed() < std::time::Duration::from_secs(100));
        guest.request(1, 20 << 20, 4096);
        guest.say(&[5; 4096]);
        assert_eq!(guest.error(), 0);
    }
    assert_eq!(browser.faults(), json!([]));
    browser.run("document.querySelector('[data-act=pause]').click()");
    browser.wait("return !!document.querySelector('[data-act=resume]')");
    for width in [1280, 390] {
        browser.resize(width);
        assert_eq!(browser.faults(), json!([]), "{width} pixels");
        let text = browser.run(TEXT);
        let text = text.as_str().unwrap();
        let process = format!("process {}", std::process::id());
        for shown in
            [IMAGE, DISK, "other", "low.qcow2", "base.qcow2", "24\u{a0}MiB", "paused", "B/s", &process]
        {
            assert!(text.contains(shown), "{width}: {shown}: {text}");
        }
        for shown in ["stands on low.qcow2", "also under other", "being folded", "folded into", "\u{a0}%"] {
            assert!(text.contains(shown), "{width}: {shown}: {text}");
        }
    }
    // Names are texts: nothing of them ran, or became an element.
    let made = "return [document.title, document.querySelectorAll('script').length, document.querySelectorAll('i').length]";
    assert_eq!(browser.run(made), json!(["deltachain", 1, 0]));
    browser.run("document.querySelector('[data-act=resume]').click()");
    browser.wait("return !!document.querySelector('[data-act=pause]')");
    browser.run("document.querySelector('[data-act=cancel]').click()");
    browser.wait("return document.querySelector('[data-act=cancel]').innerText === 'Really cancel?'");
    browser.run("document.querySelector('[data-act=cancel]').click()");
    browser.wait("return document.querySelector('[data-job] .badge').innerText === 'not done'");
    assert_eq!(browser.faults(), json!([]));
}

#[test]
fn who_does_not_know_the_token_is_asked_for_it() {
    let folder = disks();
    let Seen { daemon: _daemon, port, token } = serve(&folder);
    let browser = Browser::start();
    browser.open(&format!("http://127.0.0.1:{port}/#token=wrong"));
    let says = |token: &str| {
        browser.wait("return document.querySelector('#token').checkVisibility()");
        browser.run(&format!(
            "document.querySelector('#token').value = '{token}'; document.querySelector('#sign-in button').click()"
        ));
    };
    browser.resize(390);
    browser.wait("return document.querySelector('#token').checkVisibility()");
    assert_eq!(browser.faults(), json!([]));
    says("wrong again");
    assert_eq!(browser.run("return document.querySelectorAll('[data-disk]').length"), 0);
    says(&token);
    browser.wait("return document.querySelectorAll('[data-disk]').length === 2");
    assert_eq!(browser.run("return [location.href.includes('token'), document.cookie]"), json!([false, ""]));
}
