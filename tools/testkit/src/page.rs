//! An application in the place of the images that manifests name: a page that calls others, knows its user, and fails or
//! takes its time when it is told to.

use std::fs;
use std::io::{BufReader, Write as _};
use std::net::{TcpListener, TcpStream, ToSocketAddrs as _};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use serde_json::{Map, Value, json};

use crate::http::{Answer, HttpServer, Request, read_response};

/// What a page says and does.
///
/// | path | answer |
/// |---|---|
/// | `/status/503` | that status |
/// | `/delay/2` | 200 after so many seconds |
/// | `/headers` | the request's headers |
/// | `/login` with `username=jason` as body | 302, and a cookie that says who the user is; `/logout` takes it away |
/// | else | 200 with its names, the client's address, and what the calls for the path were answered |
///
/// The user goes to those that it calls as the header `end-user`, as Bookinfo's product page does it.
#[derive(Debug, Clone)]
pub struct Page {
    /// The application, such as `reviews`.
    pub service: String,
    /// Its version.
    pub version: String,
    /// The replica that answers.
    pub pod: String,
    /// What it calls for a request.
    pub calls: Vec<Call>,
    /// A call that failed is the page's own failure.
    pub strict: bool,
    /// A file that says how the page feels, read for each request: `status 503`, `delay 2000` (milliseconds); well
    /// without it.
    pub mood: Option<PathBuf>,
}

/// A call that a page makes for requests whose path begins with a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    prefix: String,
    host: String,
    path: String,
}

impl FromStr for Call {
    type Err = anyhow::Error;

    /// `/catalogue=catalogue/catalogue`: the prefix, then host with port, and path.
    fn from_str(text: &str) -> Result<Self> {
        let parts = text
            .split_once('=')
            .and_then(|(prefix, url)| Some((prefix, url.split_once('/')?)));
        let (prefix, (host, path)) = parts.ok_or_else(|| anyhow!("{text:?} is no call"))?;
        Ok(Self {
            prefix: prefix.to_owned(),
            host: host.to_owned(),
            path: format!("/{path}"),
        })
    }
}

impl Page {
    /// Serves forever, and writes a line for each request to standard output.
    ///
    /// # Errors
    /// The listener fails.
    pub fn serve(self, listener: &TcpListener) -> Result<()> {
        let page = Arc::new(self);
        HttpServer::serve(listener, move |request| page.answer(request)).context("accepting")
    }

    fn answer(&self, request: &Request) -> Answer {
        let user = user(request);
        let host = request.header("host").unwrap_or_default();
        say(&format!(
            "{} {} host={host} user={}",
            request.method,
            request.path,
            user.as_deref().unwrap_or("-")
        ));
        if let Some(status) = self.mood() {
            return self.status(status);
        }
        let path = request.path.split('?').next().unwrap_or_default();
        let number = |prefix: &str| path.strip_prefix(prefix)?.parse::<u16>().ok();
        if let Some(status) = number("/status/") {
            return self.status(status);
        }
        if let Some(seconds) = number("/delay/") {
            thread::sleep(Duration::from_secs(seconds.into()));
        }
        match path {
            "/headers" => {
                let headers: Map<String, Value> = request
                    .headers
                    .iter()
                    .map(|(name, value)| (name.to_lowercase(), json!(value)))
                    .collect();
                line(200, &json!({"headers": headers}))
            }
            "/login" => {
                let body = String::from_utf8_lossy(&request.body);
                let name = body
                    .split('&')
                    .find_map(|pair| pair.strip_prefix("username="));
                turn_to_page(&format!("{SESSION}{}; Path=/", name.unwrap_or_default()))
            }
            "/logout" => turn_to_page(&format!("{SESSION}; Path=/; Max-Age=0")),
            _ => self.page(request, path, user.as_deref()),
        }
    }

    fn page(&self, request: &Request, path: &str, user: Option<&str>) -> Answer {
        let mut called = Map::new();
        let mut status = 200;
        for call in self
            .calls
            .iter()
            .filter(|call| path.starts_with(&call.prefix))
        {
            let name = call.host.split([':', '.']).next().unwrap_or_default();
            let said = match call.make(request, user) {
                Ok((code, body)) => {
                    if self.strict && code != 200 {
                        status = code;
                    }
                    json!({"status": code, "body": body})
                }
                Err(error) => {
                    if self.strict {
                        status = 500;
                    }
                    json!({"error": format!("{error:#}")})
                }
            };
            called.insert(name.to_owned(), said);
        }
        let body = json!({
            "service": self.service,
            "version": self.version,
            "pod": self.pod,
            "peer": request.peer.ip().to_canonical(),
            "host": request.header("host"),
            "path": request.path,
            "user": user,
            "calls": called,
        });
        line(status, &body)
    }

    fn status(&self, status: u16) -> Answer {
        let body = json!({"service": self.service, "version": self.version, "pod": self.pod});
        line(status, &body)
    }

    /// Waits as it is told to, and says the status that it is told to answer.
    fn mood(&self) -> Option<u16> {
        let text = fs::read_to_string(self.mood.as_ref()?).ok()?;
        let (word, number) = text.trim().split_once(' ')?;
        match word {
            "status" => number.parse().ok(),
            "delay" => {
                thread::sleep(Duration::from_millis(number.parse().ok()?));
                None
            }
            _ => None,
        }
    }
}

impl Call {
    fn make(&self, request: &Request, user: Option<&str>) -> Result<(u16, Value)> {
        let address = match self.host.contains(':') {
            true => self.host.clone(),
            false => format!("{}:80", self.host),
        };
        let address = address.to_socket_addrs()?.next().context("no address")?;
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let (host, path) = (&self.host, &self.path);
        let mut head = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
        if let Some(user) = user {
            head.push_str(&format!("end-user: {user}\r\n"));
        }
        for name in PASSED_ON {
            if let Some(value) = request.header(name) {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
        }
        (&stream).write_all(format!("{head}\r\n").as_bytes())?;
        let response = read_response(&mut BufReader::new(&stream))?;
        let text = String::from_utf8_lossy(&response.body);
        let body = serde_json::from_str(&text).unwrap_or_else(|_| json!(text));
        Ok((response.status, body))
    }
}

/// Who has logged in, or who the caller says that it is.
fn user(request: &Request) -> Option<String> {
    let cookies = request.header("cookie").unwrap_or_default().split("; ");
    let session = cookies
        .filter_map(|cookie| cookie.strip_prefix(SESSION))
        .find(|name| !name.is_empty());
    session
        .or_else(|| request.header("end-user"))
        .map(str::to_owned)
}

fn turn_to_page(cookie: &str) -> Answer {
    let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    Answer {
        status: 302,
        headers: vec![
            header("Location", "/productpage"),
            header("Set-Cookie", cookie),
        ],
        body: Vec::new(),
    }
}

fn line(status: u16, body: &Value) -> Answer {
    (status, format!("{body}\n").into_bytes()).into()
}

/// A line on standard output, at once: somebody follows the log.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    drop(writeln!(out, "{text}").and_then(|()| out.flush()));
}

const SESSION: &str = "session=";
/// What Bookinfo's pages pass on, beside the user.
const PASSED_ON: [&str; 2] = ["x-request-id", "user-agent"];
const PATIENCE: Duration = Duration::from_secs(12);

#[cfg(test)]
mod tests {
    use super::*;

    fn page(service: &str, calls: &[&str]) -> Page {
        Page {
            service: service.to_owned(),
            version: "v1".to_owned(),
            pod: format!("{service}-0"),
            calls: calls.iter().map(|text| text.parse().unwrap()).collect(),
            strict: false,
            mood: None,
        }
    }

    fn serve(page: Page) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        thread::spawn(move || page.serve(&listener));
        address
    }

    fn get(address: &str, path: &str, cookie: &str) -> (u16, Value) {
        let stream = TcpStream::connect(address).unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\nCookie: {cookie}\r\n\r\n");
        (&stream).write_all(head.as_bytes()).unwrap();
        let response = read_response(&mut BufReader::new(&stream)).unwrap();
        let body = serde_json::from_slice(&response.body).unwrap_or_default();
        (response.status, body)
    }

    #[test]
    fn a_page_calls_others_in_the_name_of_its_user() {
        let ratings = serve(page("ratings", &[]));
        let front = serve(page("front", &[&format!("/shown={ratings}/stars")]));
        let (status, body) = get(&front, "/shown/x", "session=jason");
        assert_eq!(status, 200);
        let called = body.pointer("/calls/127/body").unwrap();
        assert_eq!(called["user"], "jason");
        assert_eq!(called["path"], "/stars");
        let (_, body) = get(&front, "/other", "");
        assert_eq!(body["calls"], json!({}));
        assert_eq!(body["user"], Value::Null);
    }

    #[test]
    fn it_answers_as_it_is_told() {
        let folder = std::env::temp_dir().join(format!("keelson-mood-{}", std::process::id()));
        let mut moody = page("moody", &["/shown=127.0.0.1:1/"]);
        moody.mood = Some(folder.clone());
        moody.strict = true;
        let address = serve(moody);
        assert_eq!(get(&address, "/status/418", "").0, 418);
        assert_eq!(get(&address, "/", "").0, 200);
        assert_eq!(get(&address, "/shown", "").0, 500);
        fs::write(&folder, "status 503").unwrap();
        assert_eq!(get(&address, "/", "").0, 503);
        fs::remove_file(&folder).unwrap();
        assert_eq!(get(&address, "/", "").0, 200);
    }
}
