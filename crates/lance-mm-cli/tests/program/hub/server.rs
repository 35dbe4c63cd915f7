//! As much of the Hugging Face hub as a download needs.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use sha2::{Digest, Sha256};

/// The commit of every repository.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The branch that is at [`COMMIT`], and the commit itself.
const REVISIONS: [&str; 2] = ["main", COMMIT];

/// A server on the loopback interface for as long as it lives.
pub(crate) struct Hub {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Contents by repository and file.
    files: BTreeMap<String, BTreeMap<String, &'static [u8]>>,
    /// Heads of the requests so far.
    requests: Vec<String>,
    cut: Option<Cut>,
    /// A file that is sent with one byte wrong.
    damaged: Option<String>,
    stopped: bool,
}

/// A file of which each answer sends only the first bytes.
struct Cut {
    file: String,
    bytes: usize,
    times: usize,
    /// Afterwards the server says that it is unavailable.
    refuse: bool,
}

impl Hub {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.lock().unwrap().stopped {
                    break;
                }
                // A client that goes away is its own business.
                let _ = stream.and_then(|stream| answer(stream, &shared));
            }
        });
        Self { address, state }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn add(&self, repo: &str, file: &str, bytes: &'static [u8]) {
        self.state.lock().unwrap().files.entry(repo.to_owned()).or_default().insert(file.to_owned(), bytes);
    }

    pub(crate) fn cut(&self, file: &str, bytes: usize, times: usize) {
        self.state.lock().unwrap().cut = Some(Cut { file: file.to_owned(), bytes, times, refuse: false });
    }

    pub(crate) fn refuse_after_cut(&self) {
        self.state.lock().unwrap().cut.as_mut().unwrap().refuse = true;
    }

    pub(crate) fn damage(&self, file: &str) {
        self.state.lock().unwrap().damaged = Some(file.to_owned());
    }

    pub(crate) fn recover(&self) {
        let mut state = self.state.lock().unwrap();
        (state.cut, state.damaged) = (None, None);
        state.requests.clear();
    }

    pub(crate) fn forget(&self) {
        self.state.lock().unwrap().requests.clear();
    }

    pub(crate) fn requests(&self) -> Vec<String> {
        self.state.lock().unwrap().requests.clone()
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.state.lock().unwrap().stopped = true;
        let _ = TcpStream::connect(self.address);
    }
}

fn answer(mut stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head)? > 0 {}
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let range =
        head.lines().find_map(|line| line.to_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
    let mut state = state.lock().unwrap();
    state.requests.push(head.replace('\r', ""));
    let status = |stream: &mut TcpStream, status: &str| {
        stream.write_all(
            format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").as_bytes(),
        )
    };
    if path.contains("secret/") {
        return status(&mut stream, "401 Unauthorized");
    }
    let listed = path.strip_prefix("/api/models/").and_then(|path| path.split_once("/revision/"));
    if let Some((repo, _)) = listed.filter(|(_, revision)| REVISIONS.contains(revision)) {
        let Some(files) = state.files.get(repo) else { return status(&mut stream, "404 Not Found") };
        let siblings: Vec<_> = files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
        let body = serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        return stream.write_all((head + &body).as_bytes());
    }
    let found = path.trim_start_matches('/').split_once("/resolve/").and_then(|(repo, rest)| {
        let (_, file) = rest.split_once('/').filter(|(revision, _)| REVISIONS.contains(revision))?;
        Some((file, *state.files.get(repo)?.get(file)?))
    });
    let Some((file, bytes)) = found else { return status(&mut stream, "404 Not Found") };

    let range = range.unwrap_or_else(|| "0-".to_owned());
    let (start, end) = range.split_once('-').unwrap();
    let (start, probe) = (start.parse::<usize>().unwrap(), !end.is_empty());
    if start >= bytes.len() {
        return status(&mut stream, "416 Range Not Satisfiable");
    }
    let end = if probe { end.parse::<usize>().unwrap() + 1 } else { bytes.len() };
    let hash: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    let mut body = bytes[start..end].to_vec();
    let length = body.len();
    if let Some(cut) = state.cut.as_mut().filter(|cut| !probe && cut.file == file) {
        if cut.times > 0 {
            cut.times -= 1;
            body.truncate(cut.bytes);
        } else if cut.refuse {
            return status(&mut stream, "503 Service Unavailable");
        }
    }
    if state.damaged.as_deref() == Some(file) && !probe {
        body[length / 2] ^= 1;
    }
    drop(state);
    let head = format!(
        "HTTP/1.1 206 Partial Content\r\nContent-Length: {length}\r\nContent-Range: bytes {start}-{}/{}\r\n\
         ETag: \"{hash}\"\r\nx-repo-commit: {COMMIT}\r\nConnection: close\r\n\r\n",
        end - 1,
        bytes.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(&body)
}
