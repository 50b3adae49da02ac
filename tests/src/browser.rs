//! A headless Chromium for tests of pages, driven through chromedriver's WebDriver protocol (W3C, <https://www.w3.org/TR/webdriver2/>):
//! JSON over HTTP/1.1 on a local socket, so that it takes no further crate.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// No answer of the browser takes longer.
const PATIENCE: Duration = Duration::from_secs(120);

/// A browser with one window, ended when dropped.
pub struct Browser {
    driver: Child,
    port: u16,
    session: String,
    profile: tempfile::TempDir,
}

/// The first of `names` that `--version` starts.
fn installed<'n>(names: &[&'n str]) -> Option<&'n str> {
    names.iter().copied().find(|name| {
        let found = Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        found.is_ok_and(|status| status.success())
    })
}

impl Browser {
    /// Starts a browser with a window of `width` by `height`; `None`, and a line that says so, where there is none.
    ///
    /// # Panics
    /// When Chromium and chromedriver are there but do not start.
    #[must_use]
    #[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
    pub fn start(width: u32, height: u32) -> Option<Self> {
        let names = ["chromium", "chromium-browser", "google-chrome"];
        let (Some(chromium), Some(driver)) = (installed(&names), installed(&["chromedriver"])) else {
            eprintln!("skipped: no chromium or chromedriver here (apt-get install chromium chromium-driver)");
            return None;
        };
        let mut driver = Command::new(driver)
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver starts");
        let stdout = driver.stdout.take().expect("its stdout");
        let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
        let port = lines.find_map(|line| {
            let number = line.split_once("started successfully on port ")?.1;
            number.trim_end_matches('.').parse().ok()
        });
        // What else it prints must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        let profile = tempfile::tempdir().expect("a folder");
        let mut browser = Self {
            driver,
            port: port.expect("chromedriver names its port"),
            session: String::new(),
            profile,
        };
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--hide-scrollbars",
        ];
        let mut arguments: Vec<String> = arguments.map(str::to_owned).to_vec();
        arguments.push(format!("--user-data-dir={}", browser.profile.path().display()));
        arguments.push(format!("--window-size={width},{height}"));
        let path = which(chromium);
        let answer = browser.ask(
            "POST",
            "/session",
            &json!({ "capabilities": { "alwaysMatch": {
                "browserName": "chrome",
                "goog:chromeOptions": { "args": arguments, "binary": path },
                "goog:loggingPrefs": { "browser": "ALL" },
                "timeouts": { "script": 60_000, "pageLoad": 60_000 },
            } } }),
        );
        browser.session = answer["sessionId"].as_str().expect("a session").to_owned();
        Some(browser)
    }

    /// Opens a file, as a double click does.
    ///
    /// # Panics
    /// When it cannot be opened.
    pub fn open(&self, file: &Path) {
        let file = file.canonicalize().expect("a file");
        self.command("url", &json!({ "url": format!("file://{}", file.display()) }));
    }

    /// Gives the page a size as of another screen.
    pub fn resize(&self, width: u32, height: u32) {
        let parameters = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": true });
        self.devtools("Emulation.setDeviceMetricsOverride", &parameters);
    }

    /// A command of the DevTools protocol; its answer.
    pub fn devtools(&self, command: &str, parameters: &Value) -> Value {
        self.command("goog/cdp/execute", &json!({ "cmd": command, "params": parameters }))
    }

    /// What `script` returns in the page; it may `await`.
    #[must_use]
    pub fn run(&self, script: &str) -> Value {
        let script = format!("return (async () => {{ {script} }})()");
        self.command("execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// Moves the pointer over the page: to each place, pressed from the second on where `press` is true, and released at the end.
    pub fn point(&self, places: &[(f64, f64)], press: bool) {
        let mut actions = Vec::new();
        for (index, (x, y)) in places.iter().enumerate() {
            actions.push(json!({ "type": "pointerMove", "duration": 0, "x": x.round(), "y": y.round() }));
            if press && index == 0 {
                actions.push(json!({ "type": "pointerDown", "button": 0 }));
            }
        }
        if press {
            actions.push(json!({ "type": "pointerUp", "button": 0 }));
        }
        let source = json!({ "type": "pointer", "id": "mouse", "parameters": { "pointerType": "mouse" }, "actions": actions });
        self.command("actions", &json!({ "actions": [source] }));
    }

    /// What the page wrote to the console at level warning or above, and what it could not load.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        let log = self.command("se/log", &json!({ "type": "browser" }));
        let entries = log.as_array().cloned().unwrap_or_default();
        let grave = |entry: &&Value| matches!(entry["level"].as_str(), Some("SEVERE" | "WARNING"));
        entries.iter().filter(grave).map(Value::to_string).collect()
    }

    fn command(&self, path: &str, body: &Value) -> Value {
        self.ask("POST", &format!("/session/{}/{path}", self.session), body)
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        let answer = self.request(method, path, body).expect("chromedriver answers");
        let value = answer["value"].clone();
        assert!(value.get("error").is_none(), "{method} {path}: {value}");
        value
    }

    fn request(&self, method: &str, path: &str, body: &Value) -> std::io::Result<Value> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let body = if method == "POST" { body.to_string() } else { String::new() };
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.port,
            body.len()
        )?;
        let mut reader = BufReader::new(stream);
        let mut length = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 || line == "\r\n" {
                break;
            }
            let (name, value) = line.split_once(':').unwrap_or_default();
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().map_err(std::io::Error::other)?;
            }
        }
        let mut text = vec![0; length];
        reader.read_exact(&mut text)?;
        Ok(serde_json::from_slice(&text)?)
    }
}

/// The path of a program, which chromedriver wants whole.
fn which(name: &str) -> String {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&folders).map(|folder| folder.join(name)).find(|path| path.is_file());
    found.map_or_else(|| name.to_owned(), |path| path.display().to_string())
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() {
            let _ = self.request("DELETE", &format!("/session/{}", self.session), &Value::Null);
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
