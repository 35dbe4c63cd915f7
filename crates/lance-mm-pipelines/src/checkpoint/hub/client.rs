//! Requests to the hub. The token is sent to the configured origin alone; every wait and every size has a limit.

use std::fs;
use std::io::{self, ErrorKind, Read};
use std::path::Path;
use std::time::{Duration, Instant};

use ureq::http::{HeaderMap, HeaderValue, Response, header};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use super::url::{Origin, Url};
use crate::error::Error;

/// Redirects in a row.
const MAX_REDIRECTS: usize = 10;
/// Bytes of an answer that is held in memory: the list of files. Lists of the largest repositories have 3 MB.
const MAX_ANSWER: u64 = 16 << 20;
/// Bytes a second below which a connection counts as stalled.
const MIN_RATE: f64 = 1000.0;
/// Tries of a request whose failure may pass.
const ATTEMPTS: u32 = 3;

/// Reason of a failed request.
#[derive(Debug)]
pub(super) enum Failure {
    /// An HTTP status other than success.
    Status(u16),
    /// No byte, or hardly one, in this time.
    Stalled(Duration),
    /// No connection.
    Unreachable(String),
    /// A connection that ended early.
    Broken(String),
    /// An answer that cannot be used.
    Unusable(String),
    /// A file of the cache.
    Disk(io::Error),
}

impl Failure {
    /// Whether another try may go better.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Status(status) => *status == 429 || *status >= 500,
            Self::Stalled(_) | Self::Unreachable(_) | Self::Broken(_) => true,
            Self::Unusable(_) | Self::Disk(_) => false,
        }
    }

    /// Whether another try may go better at once: nobody waits for three timeouts before the first byte.
    fn may_pass_soon(&self) -> bool {
        self.may_pass() && !matches!(self, Self::Stalled(_) | Self::Unreachable(_))
    }

    fn of(error: ureq::Error, timeout: Duration) -> Self {
        match error {
            ureq::Error::Timeout(_) => Self::Stalled(timeout),
            ureq::Error::Io(error) => match error.kind() {
                ErrorKind::TimedOut | ErrorKind::WouldBlock => Self::Stalled(timeout),
                ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => {
                    Self::Unreachable(error.to_string())
                }
                _ => Self::Broken(error.to_string()),
            },
            error @ (ureq::Error::HostNotFound | ureq::Error::ConnectionFailed) => {
                Self::Unreachable(error.to_string())
            }
            error => Self::Unusable(quoted(&error.to_string())),
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Status(401 | 403) => {
                f.write_str("not on the hub, or private or gated (then HF_TOKEN must allow it)")
            }
            Self::Status(404) => f.write_str("not found on the hub"),
            Self::Status(status) => write!(f, "HTTP status {status}"),
            Self::Stalled(time) => {
                write!(f, "no answer or hardly a byte for {:.0} s", time.as_secs_f64().ceil())
            }
            Self::Unreachable(message) | Self::Broken(message) | Self::Unusable(message) => {
                f.write_str(message)
            }
            Self::Disk(error) => write!(f, "{error}"),
        }
    }
}

/// A hub.
pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    origin: Origin,
    token: Option<HeaderValue>,
    timeout: Duration,
}

/// The last answer after redirects, its body not yet read.
pub(super) struct Answer {
    pub(super) response: Response<Body>,
    /// Headers of the answers of the hub itself, in order; those of other hosts have no say.
    hub: Vec<HeaderMap>,
    timeout: Duration,
}

impl Client {
    /// A client of the hub at `endpoint`. `certificates` is a PEM file of those that are trusted in place of Mozilla's;
    /// `timeout` limits the connection, the wait for an answer, and the time without a byte.
    pub(super) fn new(
        endpoint: String,
        token: Option<&str>,
        certificates: Option<&Path>,
        timeout: Duration,
    ) -> Result<Self, Error> {
        let origin =
            Url::parse(&endpoint).and_then(|url| url.origin()).filter(|_| !endpoint.contains(['?', '#']));
        let Some(origin) = origin else {
            return Err(hub("HF_ENDPOINT", "expected http:// or https:// and a host, without a user name"));
        };
        let token = token.map(|token| HeaderValue::from_str(&format!("Bearer {token}"))).transpose();
        let mut token = token.map_err(|_| hub("HF_TOKEN", "expected printable characters"))?;
        if let Some(token) = &mut token {
            token.set_sensitive(true);
        }
        let roots = certificates.map_or(Ok(RootCerts::WebPki), trusted)?;
        // Redirects are followed here, where it is known who may see the token. Nothing is decompressed.
        let config = Agent::config_builder()
            .user_agent(concat!("lance-mm/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_resolve(Some(timeout))
            .timeout_connect(Some(timeout))
            .timeout_send_request(Some(timeout))
            .timeout_recv_response(Some(timeout))
            .timeout_per_read(Some(timeout))
            .build();
        Ok(Self { agent: config.new_agent(), endpoint, origin, token, timeout })
    }

    /// Address of a path on the hub.
    pub(super) fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.endpoint)
    }

    /// Asks for an address of the hub, or for the given bytes of it, and follows redirects until `enough` is satisfied
    /// with the headers of the hub.
    pub(super) fn get(
        &self,
        url: &str,
        range: Option<&str>,
        enough: impl Fn(&Answer) -> bool,
    ) -> Result<Answer, Failure> {
        let mut url = Url::parse(url).ok_or_else(|| Failure::Unusable("no address of the hub".into()))?;
        let mut headers = Vec::new();
        for _ in 0..=MAX_REDIRECTS {
            let of_hub = url.origin().is_some_and(|origin| origin == self.origin);
            let mut request = self.agent.get(url.uri());
            if let Some(range) = range {
                request = request.header(header::RANGE, range);
            }
            if let Some(token) = self.token.as_ref().filter(|_| of_hub) {
                request = request.header(header::AUTHORIZATION, token);
            }
            let response = request.call().map_err(|error| Failure::of(error, self.timeout))?;
            if of_hub {
                headers.push(response.headers().clone());
            }
            let status = response.status().as_u16();
            let answer = Answer { response, hub: headers, timeout: self.timeout };
            if !matches!(status, 301 | 302 | 303 | 307 | 308) || enough(&answer) {
                return Ok(answer);
            }
            let next = target(&url, answer.response.headers())?;
            headers = answer.hub;
            url = next;
        }
        Err(Failure::Unusable(format!("more than {MAX_REDIRECTS} redirects")))
    }

    /// An answer of the hub in memory.
    pub(super) fn get_bytes(&self, url: &str) -> Result<Vec<u8>, Failure> {
        self.try_again(|| {
            let mut answer = self.get(url, None, |_| false)?;
            match answer.response.status().as_u16() {
                200 => {}
                status => return Err(Failure::Status(status)),
            }
            if answer.length().is_some_and(|length| length > MAX_ANSWER) {
                return Err(too_large());
            }
            let (mut bytes, start) = (Vec::new(), Instant::now());
            answer.copy(MAX_ANSWER + 1, |part| {
                bytes.extend_from_slice(part);
                // Each read is in time, and a list that comes in drops takes hours all the same.
                let late = start.elapsed() > self.timeout * 10;
                if late { Err(Failure::Stalled(self.timeout)) } else { Ok(()) }
            })?;
            if bytes.len() as u64 > MAX_ANSWER { Err(too_large()) } else { Ok(bytes) }
        })
    }

    /// Sleeps before the next try: 0.5 s, then longer.
    pub(super) fn pause(&self, failures: u32) {
        std::thread::sleep(self.timeout / 60 * failures);
    }

    /// Repeats a request whose failure may pass soon.
    pub(super) fn try_again<T>(&self, mut request: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
        let mut attempt = 1;
        loop {
            match request() {
                Err(failure) if attempt < ATTEMPTS && failure.may_pass_soon() => {
                    self.pause(attempt);
                    attempt += 1;
                }
                result => return result,
            }
        }
    }
}

impl Answer {
    /// A header of the hub's own answers: of the last that has it.
    pub(super) fn of_hub(&self, name: &str) -> Option<&str> {
        self.hub.iter().rev().find_map(|headers| text(headers, name))
    }

    /// A header of the last answer.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        text(self.response.headers(), name)
    }

    /// Length of the body, if the answer tells it.
    pub(super) fn length(&self) -> Option<u64> {
        self.header("content-length")?.trim().parse().ok()
    }

    /// First byte and length of the whole file, if the answer tells them (`Content-Range: bytes 0-9/100`).
    pub(super) fn range(&self) -> Option<(u64, Option<u64>)> {
        let range = self.header("content-range")?.trim().strip_prefix("bytes")?.trim_start();
        let (part, total) = range.split_once('/')?;
        let first = part.split_once('-').map_or(part, |(first, _)| first);
        let first = if first == "*" { 0 } else { first.trim().parse().ok()? };
        Some((first, total.trim().parse().ok()))
    }

    /// Hands on at most `limit` bytes of the body, and returns their number.
    pub(super) fn copy(
        &mut self,
        limit: u64,
        mut write: impl FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<u64, Failure> {
        if let Some(encoding) = self.header("content-encoding").filter(|encoding| *encoding != "identity") {
            return Err(Failure::Unusable(format!(
                "an encoded answer ({}), which was not asked for",
                quoted(encoding)
            )));
        }
        let timeout = self.timeout;
        let mut reader = self.response.body_mut().as_reader();
        let mut buffer = vec![0; 1 << 17];
        let (mut copied, mut since, mut recent) = (0, Instant::now(), 0);
        while copied < limit {
            let space = usize::try_from(limit - copied).unwrap_or(usize::MAX).min(buffer.len());
            let n = match reader.read(&mut buffer[..space]) {
                Ok(0) => break,
                Ok(n) => n,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(Failure::of(error.into(), timeout)),
            };
            write(&buffer[..n])?;
            copied += n as u64;
            recent += n;
            let seconds = since.elapsed().as_secs_f64();
            if seconds >= timeout.as_secs_f64() {
                if (recent as f64) < MIN_RATE * seconds {
                    return Err(Failure::Stalled(timeout));
                }
                (since, recent) = (Instant::now(), 0);
            }
        }
        Ok(copied)
    }
}

/// Certificates of a PEM file.
fn trusted(path: &Path) -> Result<RootCerts, Error> {
    let pem = fs::read(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
    let found = parse_pem(&pem).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    });
    let certificates: Vec<_> = found.collect();
    if certificates.is_empty() {
        return Err(hub(path.display(), "expected certificates in PEM format, found none"));
    }
    Ok(RootCerts::new_with_certs(&certificates))
}

/// The address that a redirect names.
fn target(url: &Url, headers: &HeaderMap) -> Result<Url, Failure> {
    let Some(location) = headers.get(header::LOCATION) else {
        return Err(Failure::Unusable("a redirect without an address".into()));
    };
    let location = String::from_utf8_lossy(location.as_bytes());
    let lead = |found: &str| Failure::Unusable(format!("a redirect to {}, {found}", quoted(&location)));
    let next = url.join(&location).ok_or_else(|| lead("which is no address of http or https"))?;
    if next == *url {
        return Err(lead("which is where it came from"));
    }
    if url.is_https() && !next.is_https() {
        return Err(lead("which leaves https"));
    }
    Ok(next)
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim).filter(|value| !value.is_empty())
}

fn too_large() -> Failure {
    Failure::Unusable(format!("expected an answer of at most {MAX_ANSWER} bytes, found more"))
}

/// Text of the hub for a message: short, and without control characters.
pub(super) fn quoted(text: &str) -> String {
    const MAX: usize = 200;
    let short: String = text.chars().take(MAX).collect();
    let more = if short.len() < text.len() { ".." } else { "" };
    format!("{}{more}", short.escape_debug())
}

pub(super) fn hub(name: impl ToString, message: impl ToString) -> Error {
    Error::Hub { name: name.to_string(), message: message.to_string() }
}
