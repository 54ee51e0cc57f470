//! A browser without a screen, driven over `WebDriver` (HTTP and JSON by hand).

use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// One request to a port of this machine: status and body.
pub(crate) fn http(port: u16, method: &str, path: &str, headers: &str, body: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
    let length = body.len();
    let head =
        format!("{method} {path} HTTP/1.1\r\n{headers}Connection: close\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all((head + body).as_bytes()).unwrap();
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let read = stream.read(&mut piece).unwrap();
        answer.extend_from_slice(&piece[..read]);
        let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let head = String::from_utf8(answer[..end].to_vec()).unwrap();
        let stated = head
            .lines()
            .find_map(|line| line.to_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
        if read == 0 || stated.is_some_and(|stated: usize| answer.len() >= end + 4 + stated) {
            let status = head.split(' ').nth(1).unwrap().parse().unwrap();
            return (status, head, String::from_utf8(answer.split_off(end + 4)).unwrap());
        }
    }
}

/// A browser with one page; both end when this goes.
pub(crate) struct Browser {
    driver: Child,
    port: u16,
    session: String,
    _profile: tempfile::TempDir,
}

impl Browser {
    pub(crate) fn start() -> Self {
        let mut command = Command::new("chromedriver");
        command.arg("--port=0").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut driver =
            command.spawn().unwrap_or_else(|e| panic!("chromedriver is needed for the tests: {e}"));
        let said = BufReader::new(driver.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut ports =
            said.filter_map(|line| line.rsplit_once("on port ")?.1.trim_end_matches('.').parse::<u16>().ok());
        // It first says what it was told: any.
        let port = ports.find(|port| *port != 0);
        let profile = tempfile::tempdir().unwrap();
        let profile_argument = format!("--user-data-dir={}", profile.path().display());
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            &profile_argument,
        ];
        let mut browser = Self { driver, port: port.unwrap(), session: String::new(), _profile: profile };
        let options = json!({ "alwaysMatch": { "goog:chromeOptions": { "args": arguments, "binary": "/usr/bin/chromium" } } });
        let session = browser.ask("POST", "/session", &json!({ "capabilities": options }));
        browser.session = String::from(session["sessionId"].as_str().unwrap());
        browser
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = if method == "POST" { body.to_string() } else { String::new() };
        let headers = format!("Host: 127.0.0.1:{}\r\nContent-Type: application/json\r\n", self.port);
        let (status, _, said) = http(self.port, method, path, &headers, &body);
        assert_eq!(status, 200, "{path}: {said}");
        serde_json::from_str::<Value>(&said).unwrap()["value"].take()
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        self.ask("POST", &format!("/session/{}/{path}", self.session), body)
    }

    pub(crate) fn open(&self, url: &str) {
        self.post("url", &json!({ "url": url }));
    }

    /// Has the page be so wide.
    pub(crate) fn resize(&self, width: u32) {
        let metrics = json!({ "width": width, "height": 800, "deviceScaleFactor": 1, "mobile": false });
        let command = json!({ "cmd": "Emulation.setDeviceMetricsOverride", "params": metrics });
        self.post("goog/cdp/execute", &command);
    }

    /// Runs a function body in the page; returns what it returns.
    pub(crate) fn run(&self, script: &str) -> Value {
        self.post("execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// Runs it again and again until it returns something that is not false or null.
    pub(crate) fn wait(&self, script: &str) -> Value {
        let began = Instant::now();
        loop {
            let value = self.run(script);
            if !value.is_null() && value != false {
                return value;
            }
            let shown = || self.run("return document.body.innerText");
            assert!(began.elapsed() < Duration::from_secs(100), "{script}: {}", shown());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What is wrong with how the page's texts lie: what is cut off, outside, or under something else.
    pub(crate) fn faults(&self) -> Value {
        self.run(FAULTS)
    }
}

const FAULTS: &str = r"
const faults = [], boxes = [];
const wide = document.documentElement.scrollWidth;
if (wide > innerWidth) faults.push(`scrolls sideways: ${wide} of ${innerWidth}`);
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const node = walker.currentNode, parent = node.parentElement, text = node.data.trim();
  if (!text || ['SCRIPT', 'STYLE'].includes(parent.tagName) || !parent.checkVisibility()) continue;
  const range = document.createRange();
  range.selectNodeContents(node);
  for (const r of range.getClientRects()) {
    if (r.width < 1) continue;
    boxes.push({ text, r });
    if (r.left < 0 || r.right > innerWidth + 0.5) faults.push(`outside: ${text}`);
    if (r.bottom + scrollY > document.documentElement.scrollHeight || r.top + scrollY < 0) faults.push(`beyond: ${text}`);
    for (let a = parent; a && a !== document.documentElement; a = a.parentElement) {
      const b = a.getBoundingClientRect();
      const clips = getComputedStyle(a).overflowX !== 'visible';
      if (clips && (r.left < b.left - 1 || r.right > b.right + 1 || r.top < b.top - 1 || r.bottom > b.bottom + 1))
        faults.push(`cut off: ${text}`);
    }
  }
}
boxes.forEach((a, i) => boxes.slice(i + 1).forEach((b) => {
  const across = Math.min(a.r.right, b.r.right) - Math.max(a.r.left, b.r.left);
  const down = Math.min(a.r.bottom, b.r.bottom) - Math.max(a.r.top, b.r.top);
  if (across > 1 && down > 2) faults.push(`one over the other: ${a.text} / ${b.text}`);
}));
if (boxes.length < 3) faults.push('nothing to see');
return faults;
";

impl Drop for Browser {
    fn drop(&mut self) {
        // The driver ends its browser; where it does not answer, there is nothing more to do.
        let end =
            || http(self.port, "DELETE", &format!("/session/{}", self.session), "Host: 127.0.0.1\r\n", "");
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(end));
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
