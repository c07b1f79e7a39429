//! The page of `compare --html`, made by the program and used in a real browser.
//!
//! The browser is Chromium, without a window. Beside the page's own script it runs `report/probe.js`, which presses
//! every kind of button. Without a browser, or without an engine, the test is skipped.

#[path = "../src/testing/skip.rs"]
mod skip;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use skip::skip;

const BROWSERS: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
/// What a guest may say, if it wants to get out of its string.
const HOSTILE: &str =
    "</script><script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'> <!-- <script>";

/// A directory of the test's own, gone afterwards.
struct Scratch(PathBuf);

impl Scratch {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("paravane-report-{}-{test}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn paravane(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_paravane"));
        command.args(args).current_dir(&self.0).stdin(Stdio::null()).output().unwrap()
    }

    /// A page with the probe in it, as the browser left it, and what it said on its console.
    fn browse(&self, browser: &str, page: &str, window: &str) -> (String, String) {
        let html = fs::read_to_string(self.0.join(page)).unwrap();
        let probe = concat!("<script>", include_str!("report/probe.js"), "</script>\n</body>");
        let probed = self.0.join("probed.html");
        fs::write(&probed, html.replace("</body>", probe)).unwrap();
        let profile = format!("--user-data-dir={}", self.0.join("profile").display());
        // Its sandbox wants another user than root; nothing is loaded that is not ours.
        let options =
            ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"];
        let mut command = Command::new("timeout");
        command.arg("120").arg(browser).args(options).arg(profile).arg(format!("--window-size={window}"));
        command.args(["--enable-logging=stderr", "--virtual-time-budget=10000", "--dump-dom"]);
        let seen = command.arg(format!("file://{}", probed.display())).stdin(Stdio::null()).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (dom, log) = (text(&seen.stdout), text(&seen.stderr));
        let console = log.lines().filter(|line| line.contains(":CONSOLE")).collect::<Vec<_>>().join("\n");
        assert!(
            dom.contains("id=\"probe\""),
            "broken product: the probe did not come to its end\n{dom}\n{log}"
        );
        (dom, console)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn browser() -> Option<&'static str> {
    let is_there = |name: &&str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|folder| Path::new(&folder).join(name).is_file())
    };
    BROWSERS.into_iter().find(is_there)
}

/// The result of a real comparison, of which a page was made as well; nothing if no guest runs here.
fn measured(scratch: &Scratch) -> Option<Value> {
    let workloads = "map-512,console-4k,alu,clisti,lat_syscall-null";
    let measuring = ["compare", "--workload", workloads, "--technique", "pv,trap,interpret", "--repeat", "3"];
    let output = scratch.paravane(&[&measuring[..], &["--json", "--html", "measured.html"]].concat());
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    if json["engine"].is_null() {
        skip("engine", String::from_utf8_lossy(&output.stderr));
        return None;
    }
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    Some(json)
}

/// What the probe found wrong.
fn failures(dom: &str) -> Vec<&str> {
    assert!(dom.matches("\nok ").count() > 40, "{dom}");
    dom.lines().filter(|line| line.contains("FAILED")).collect()
}

#[test]
fn a_browser_shows_the_page_without_an_error_and_its_buttons_act() {
    let Some(browser) = browser() else {
        return skip("chromium", "no Chromium on the PATH (apt-get install chromium)");
    };
    let scratch = Scratch::new("browser");
    let Some(mut json) = measured(&scratch) else { return };
    // A result that exists, in which a guest said what it should not.
    json["workloads"][0]["problems"] = serde_json::json!([HOSTILE]);
    json["workloads"][0]["techniques"]["pv"]["details"]["why"] = HOSTILE.into();
    json["workloads"][0]["techniques"]["trap"]["exits"][0]["cause"] = HOSTILE.into();
    let twice = serde_json::json!({
        "schema": 1, "version": "1", "debug_build": false, "host": json["host"], "repeat": 3,
        "engines": [json, json], "left_out": [], "trap_differences": [], "notes": ["a `note`"],
    });
    fs::write(scratch.0.join("twice.json"), twice.to_string()).unwrap();
    let made = scratch.paravane(&["compare", "twice.json", "--html", "twice.html"]);
    assert_eq!(made.status.code(), Some(0), "{}", String::from_utf8_lossy(&made.stderr));
    for (page, window) in [("measured.html", "1200,900"), ("twice.html", "500,800")] {
        let (dom, console) = scratch.browse(browser, page, window);
        assert_eq!(console, "", "{page}: the browser complains");
        assert_eq!(failures(&dom), [""; 0], "{page}");
    }
}

#[test]
fn a_page_that_cannot_be_written_is_found_out_before_anything_is_measured() {
    let scratch = Scratch::new("unwritable");
    let output = scratch.paravane(&["compare", "--html", "/nonexistent/report.html"]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("cannot write a page to /nonexistent/report.html")
    );
}
