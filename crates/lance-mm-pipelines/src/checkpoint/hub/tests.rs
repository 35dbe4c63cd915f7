//! Downloads from hubs on this machine: well-behaved, slow, broken and hostile ones.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use sha1::Sha1;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::environment::Environment;
use super::pull::pull_in;
use super::{PullEvent, PullOptions, RepoName};
use crate::error::{Error, Result};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const MODEL: &str = "model.safetensors";

/// A request that a server received.
#[derive(Clone)]
struct Request {
    path: String,
    range: Option<(usize, Option<usize>)>,
    token: Option<String>,
}

impl Request {
    fn is_for(&self, file: &str) -> bool {
        self.path.ends_with(&format!("/{file}"))
    }

    fn is_probe(&self) -> bool {
        self.range == Some((0, Some(0)))
    }
}

/// A server on the loopback interface for as long as it lives, a thread for each connection.
struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    stopped: Arc<AtomicBool>,
}

impl Server {
    fn start(answer: impl Fn(&Request, &mut TcpStream) -> io::Result<()> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (requests, stopped) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (seen, stop, answer) = (requests.clone(), stopped.clone(), Arc::new(answer));
        thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                let (seen, answer) = (seen.clone(), answer.clone());
                thread::spawn(move || -> io::Result<()> {
                    let mut stream = stream?;
                    let request = read(&stream)?;
                    seen.lock().unwrap().push(request.clone());
                    answer(&request, &mut stream)
                });
            }
        });
        Self { address, requests, stopped }
    }

    /// A hub of `org/nano`, except where `odd` answers and says so.
    fn hub(odd: impl Fn(&Request, &mut TcpStream) -> io::Result<bool> + Send + Sync + 'static) -> Self {
        Self::start(
            move |request, stream| if odd(request, stream)? { Ok(()) } else { serve(request, stream) },
        )
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

fn read(stream: &TcpStream) -> io::Result<Request> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head)? > 0 {}
    let header = |name: &str| {
        let value = |line: &str| {
            Some(line.split_once(": ")?)
                .filter(|(found, _)| found.eq_ignore_ascii_case(name))
                .map(|(_, value)| value.to_owned())
        };
        head.lines().find_map(value)
    };
    let range = header("range").map(|range| {
        let (start, end) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
        (start.parse().unwrap(), end.parse().ok())
    });
    Ok(Request {
        path: head.split(' ').nth(1).unwrap_or_default().to_owned(),
        range,
        token: header("authorization"),
    })
}

/// Files of `org/nano`.
fn files() -> BTreeMap<&'static str, Vec<u8>> {
    let mut model = 64u64.to_le_bytes().to_vec();
    let header = r#"{"a":{"dtype":"U8","shape":[50000],"data_offsets":[0,50000]}}"#;
    model.extend(format!("{header:<64}").bytes());
    model.extend((0..50_000).map(|i: u32| ((i * i) >> 7) as u8));
    BTreeMap::from([
        ("config.json", b"{}".to_vec()),
        ("tokenizer.json", b"[1, 2, 3]".to_vec()),
        (MODEL, model),
    ])
}

fn etag(file: &str, bytes: &[u8]) -> String {
    let hex = |digest: &[u8]| digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    if file == MODEL {
        return hex(&Sha256::digest(bytes));
    }
    hex(&Sha1::new_with_prefix(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize())
}

fn send(stream: &mut TcpStream, status: &str, headers: &str, body: &[u8]) -> io::Result<()> {
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n", body.len());
    stream.write_all(&[head.as_bytes(), body].concat())
}

/// Part of a file as a hub sends it.
fn send_part(request: &Request, stream: &mut TcpStream, bytes: &[u8], etag: &str) -> io::Result<()> {
    let (start, end) = request.range.unwrap_or((0, None));
    let end = end.map_or(bytes.len(), |end| end + 1);
    let headers = format!(
        "ETag: \"{etag}\"\r\nX-Repo-Commit: {COMMIT}\r\nContent-Range: bytes {start}-{}/{}\r\n",
        end - 1,
        bytes.len()
    );
    send(stream, "206 Partial Content", &headers, &bytes[start..end])
}

fn listing(names: &[&str]) -> String {
    let siblings: Vec<_> = names.iter().map(|name| serde_json::json!({ "rfilename": name })).collect();
    serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string()
}

fn serve(request: &Request, stream: &mut TcpStream) -> io::Result<()> {
    let files = files();
    if request.path.starts_with("/api/models/org/nano/revision/") {
        let names: Vec<&str> = files.keys().copied().collect();
        return send(stream, "200 OK", "", listing(&names).as_bytes());
    }
    match files.iter().find(|(name, _)| request.is_for(name)) {
        Some((name, bytes)) => send_part(request, stream, bytes, &etag(name, bytes)),
        None => send(stream, "404 Not Found", "", b""),
    }
}

/// A folder for the cache, and what the environment says.
struct Place {
    dir: TempDir,
    vars: Vec<(&'static str, OsString)>,
    timeout: Duration,
}

impl Place {
    fn new(server: &Server) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let vars = vec![
            ("HF_HUB_CACHE", dir.path().join("cache").into()),
            ("HF_ENDPOINT", server.url().into()),
            ("HF_TOKEN", "hf_secret".into()),
        ];
        Self { dir, vars, timeout: Duration::from_secs(6) }
    }

    fn hasty(server: &Server) -> Self {
        Self { timeout: Duration::from_millis(300), ..Self::new(server) }
    }

    fn pull(&self) -> Result<PathBuf> {
        self.pull_with(&mut |_| {})
    }

    fn pull_with(&self, observer: &mut dyn FnMut(PullEvent<'_>)) -> Result<PathBuf> {
        let var =
            |name: &str| self.vars.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone());
        let options = PullOptions { timeout: self.timeout, ..PullOptions::default() };
        pull_in(&Environment::new(&var, None), &RepoName::parse("org/nano").unwrap(), &options, observer)
    }

    /// The error's one line.
    fn error(&self) -> String {
        let text = self.pull().unwrap_err().to_string();
        assert!(
            text.len() < 1000 && !text.contains(char::is_control) && !text.contains("hf_secret"),
            "{text:?}"
        );
        text
    }

    fn repo(&self) -> PathBuf {
        self.dir.path().join("cache/models--org--nano")
    }

    fn partial(&self) -> PathBuf {
        self.repo().join("blobs").join(etag(MODEL, &files()[MODEL]) + ".incomplete")
    }

    /// Pulls, and compares every file.
    fn pull_whole(&self) {
        let folder = self.pull().unwrap();
        for (name, bytes) in files() {
            assert!(fs::read(folder.join(name)).unwrap() == bytes, "{name}");
        }
        assert!(!self.partial().exists());
    }
}

/// A hub that answers for `file`, probes aside if `probes` is false.
fn odd_file(
    file: &'static str,
    probes: bool,
    answer: impl Fn(&Request, &mut TcpStream) -> io::Result<()> + Send + Sync + 'static,
) -> Server {
    Server::hub(move |request, stream| {
        let odd = request.is_for(file) && (probes || !request.is_probe());
        if odd { answer(request, stream).map(|()| true) } else { Ok(false) }
    })
}

#[test]
fn the_token_goes_to_the_hub_alone() {
    let other = Server::hub(|_, _| Ok(false));
    // 127.0.0.1 is the hub's host by another port, localhost is another host.
    for host in ["127.0.0.1", "localhost"] {
        let target = format!("http://{host}:{}/cdn/{MODEL}", other.address.port());
        let hub = odd_file(MODEL, true, move |_, stream| {
            send(stream, "302 Found", &format!("Location: {target}\r\n"), b"")
        });
        Place::new(&hub).pull_whole();
        let requests = hub.requests();
        assert!(requests.iter().all(|request| request.token.as_deref() == Some("Bearer hf_secret")));
        assert!(requests.iter().any(|request| request.is_for(MODEL)));
    }
    assert!(!other.requests().is_empty() && other.requests().iter().all(|request| request.token.is_none()));
}

#[test]
fn a_redirect_within_the_hub_keeps_the_token_and_states_hash_and_size() {
    let hub = odd_file(MODEL, true, |request, stream| {
        let bytes = &files()[MODEL];
        if request.path.starts_with("/cache/") {
            assert!(request.token.is_some());
            // The ETag of a store says nothing about the content.
            return send_part(request, stream, bytes, "store-7");
        }
        let headers = format!(
            "Location: /cache/{MODEL}\r\nX-Linked-Etag: \"{}\"\r\nX-Linked-Size: {}\r\n",
            etag(MODEL, bytes),
            bytes.len()
        );
        send(stream, "307 Temporary Redirect", &headers, b"")
    });
    Place::new(&hub).pull_whole();
}

#[test]
fn redirects_that_lead_nowhere() {
    for (status, location, expected) in [
        ("302 Found", "", "a redirect without an address"),
        (
            "302 Found",
            "Location: ftp://a/b\r\n",
            "a redirect to ftp://a/b, which is no address of http or https",
        ),
        ("302 Found", "Location: http://me@127.0.0.1/\r\n", "which is no address of http or https"),
        ("302 Found", "Location: /a b\r\n", "which is no address"),
        ("301 Moved", "Location: model.safetensors\r\n", "which is where it came from"),
        ("308 Moved", "Location: /other/model.safetensors?x\r\n", "which is where it came from"),
        ("304 Not Modified", "", "HTTP status 304"),
        ("300 Multiple Choices", "Location: /x\r\n", "HTTP status 300"),
    ] {
        for probes in [true, false] {
            let hub = Server::hub(move |request, stream| {
                let odd = request.path.contains(MODEL) && (probes || !request.is_probe());
                if odd { send(stream, status, location, b"").map(|()| true) } else { Ok(false) }
            });
            let error = Place::new(&hub).error();
            assert!(error.contains("/model.safetensors: ") && error.contains(expected), "{error}");
        }
    }
    let count = AtomicUsize::new(0);
    let hub = Server::hub(move |request, stream| {
        if !request.path.contains("model.") {
            return Ok(false);
        }
        let next = count.fetch_add(1, Ordering::SeqCst);
        send(stream, "302 Found", &format!("Location: /{next}/model.x\r\n"), b"").map(|()| true)
    });
    assert!(Place::new(&hub).error().ends_with("more than 10 redirects"));
}

#[test]
fn a_silent_hub_is_not_waited_for() {
    let start = Instant::now();
    let silent = Server::start(|_, _| {
        thread::sleep(Duration::from_secs(20));
        Ok(())
    });
    assert_eq!(Place::hasty(&silent).error(), "org/nano: no answer or hardly a byte for 1 s");
    let probe = odd_file("config.json", true, |_, _| {
        thread::sleep(Duration::from_secs(20));
        Ok(())
    });
    assert!(Place::hasty(&probe).error().ends_with("config.json: no answer or hardly a byte for 1 s"));
    let endpoint = Server::start(|_, _| Ok(())).url();
    let mut gone = Place::hasty(&silent);
    gone.vars[1].1 = endpoint.into();
    assert!(gone.error().starts_with("org/nano: "));
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[test]
fn a_stalled_download_is_given_up_kept_and_resumed() {
    let stalls = Arc::new(AtomicBool::new(true));
    let stall = stalls.clone();
    let hub = odd_file(MODEL, false, move |request, stream| {
        let bytes = &files()[MODEL];
        if !stall.load(Ordering::SeqCst) {
            return send_part(request, stream, bytes, &etag(MODEL, bytes));
        }
        let start = request.range.map_or(0, |(start, _)| start);
        let head = format!(
            "HTTP/1.1 206 Partial\r\nContent-Length: {}\r\nContent-Range: bytes {start}-{}/{}\r\n\r\n",
            bytes.len() - start,
            bytes.len() - 1,
            bytes.len()
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(&bytes[start..start + 1000])?;
        thread::sleep(Duration::from_secs(20));
        Ok(())
    });
    let place = Place::hasty(&hub);
    let reference = place.repo().join("refs/main");
    fs::create_dir_all(place.repo().join("refs")).unwrap();
    fs::write(&reference, "an older commit").unwrap();
    let error = place.error();
    assert_eq!(fs::read(&reference).unwrap(), b"an older commit");
    assert!(error.ends_with("for 1 s; 3000 of 50072 bytes are in the cache: rerun to resume"), "{error}");
    assert_eq!(fs::metadata(place.partial()).unwrap().len(), 3000);
    stalls.store(false, Ordering::SeqCst);
    place.pull_whole();
    assert_eq!(fs::read(&reference).unwrap(), COMMIT.as_bytes());
    assert!(hub.requests().iter().any(|request| request.range == Some((3000, None))));
}

#[test]
fn a_hub_that_drips_is_given_up() {
    let hub = odd_file(MODEL, false, |_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 50072\r\n\r\n")?;
        for _ in 0..1000 {
            stream.write_all(b"x")?;
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    });
    let start = Instant::now();
    assert!(Place::hasty(&hub).error().contains("hardly a byte"));
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[test]
fn bodies_end_where_the_hub_said() {
    let endless: fn(&Request, &mut TcpStream, &str) -> io::Result<()> = |_, stream, head| {
        stream.write_all(head.as_bytes())?;
        loop {
            stream.write_all(&[0; 65536])?;
        }
    };
    for (head, expected) in [
        ("HTTP/1.1 206 Partial\r\nConnection: close\r\n\r\n", "received more"),
        ("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", "received more"),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
            "expected 50072 bytes, the hub announces 99999999999",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n",
            "an encoded answer (gzip), which was not asked for",
        ),
        (
            "HTTP/1.1 206 Partial\r\nContent-Range: bytes 7-9/50072\r\n\r\n",
            "expected the bytes from 0 of 50072, found 7 of",
        ),
        ("HTTP/1.1 206 Partial\r\nContent-Range: bytes 0-9/10\r\n\r\n", "found 0 of Some(10)"),
    ] {
        let hub = odd_file(MODEL, false, move |request, stream| endless(request, stream, head));
        let place = Place::new(&hub);
        let error = place.error();
        assert!(error.contains(expected), "{error}");
        assert!(fs::metadata(place.partial()).map_or(0, |meta| meta.len()) <= 50_072);
    }
    let hub = Server::start(move |request, stream| endless(request, stream, "HTTP/1.1 200 OK\r\n\r\n"));
    assert_eq!(
        Place::new(&hub).error(),
        "org/nano: expected an answer of at most 16777216 bytes, found more"
    );
    let hub = odd_file("config.json", true, |_, stream| {
        let headers = format!("Content-Range: bytes 0-0/999999999999\r\nETag: \"{}\"\r\n", "0a".repeat(20));
        send(stream, "206 Partial", &headers, b"x")
    });
    assert!(Place::new(&hub).error().ends_with("expected at most 268435456 bytes, found 999999999999"));
}

#[test]
fn a_hub_without_ranges_sends_the_file_again() {
    for status in ["200 OK", "416 Range Not Satisfiable", "503 Unavailable"] {
        let count = AtomicUsize::new(0);
        let hub = odd_file(MODEL, false, move |_, stream| {
            let bytes = &files()[MODEL];
            match count.fetch_add(1, Ordering::SeqCst) {
                0 => {
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", bytes.len());
                    stream.write_all(&[head.as_bytes(), &bytes[..7000]].concat())
                }
                1 if status != "200 OK" => send(stream, status, "", b""),
                _ => send(stream, "200 OK", "", bytes),
            }
        });
        Place::new(&hub).pull_whole();
    }
}

#[test]
fn contents_are_compared_with_the_hubs_hashes() {
    for (file, algorithm) in [(MODEL, "SHA-256"), ("tokenizer.json", "git hash")] {
        let hub = odd_file(file, true, move |request, stream| {
            let mut bytes = files()[file].clone();
            let etag = etag(file, &bytes);
            *bytes.last_mut().unwrap() ^= 1;
            send_part(request, stream, &bytes, &etag)
        });
        let place = Place::new(&hub);
        let error = place.error();
        assert!(
            error.contains(&format!("{file}: expected {algorithm} ")) && error.ends_with("; rerun"),
            "{error}"
        );
        assert!(!place.repo().join("blobs").join(etag(file, &files()[file])).exists());
        assert!(!place.partial().exists());
        assert!(place.pull().is_err());
    }
}

#[test]
fn damaged_files_in_the_cache_are_found_and_fetched_again() {
    let hub = Server::hub(|_, _| Ok(false));
    let place = Place::new(&hub);
    place.pull_whole();
    let folder = place.repo().join("snapshots").join(COMMIT);
    for name in ["tokenizer.json", MODEL] {
        let mut bytes = files()[name].clone();
        bytes[8] ^= 1;
        // Through the link, as a bad disk would.
        fs::write(folder.join(name), &bytes).unwrap();
        let mut damaged = Vec::new();
        let var = |variable: &str| match variable {
            "HF_HUB_OFFLINE" => Some("1".into()),
            "HF_HUB_CACHE" => Some(place.dir.path().join("cache").into()),
            _ => None,
        };
        let repo = RepoName::parse("org/nano").unwrap();
        if cfg!(unix) {
            let offline = pull_in(&Environment::new(&var, None), &repo, &PullOptions::default(), &mut |_| {})
                .unwrap_err()
                .to_string();
            assert!(
                offline.contains(name) && offline.ends_with("run online: lance-mm pull org/nano"),
                "{offline}"
            );
        }
        place
            .pull_with(&mut |event| {
                if let PullEvent::Damaged { file } = event {
                    damaged.push(file.to_owned());
                }
            })
            .unwrap();
        assert_eq!(damaged, [name]);
        place.pull_whole();
        assert!(pull_in(&Environment::new(&var, None), &repo, &PullOptions::default(), &mut |_| {}).is_ok());
    }
    // Files instead of links, as on Windows, and one of them damaged.
    for (name, mut bytes) in files() {
        fs::remove_file(folder.join(name)).unwrap();
        bytes[1] ^= u8::from(name == "tokenizer.json");
        fs::write(folder.join(name), bytes).unwrap();
    }
    fs::remove_dir_all(place.repo().join("blobs")).unwrap();
    let before = hub.requests().len();
    place.pull_whole();
    let requests = &hub.requests()[before..];
    let fetched = requests.iter().filter(|request| request.path.contains("/resolve/") && !request.is_probe());
    assert_eq!(fetched.count(), 1);
}

#[test]
fn what_an_earlier_process_left_may_be_damaged() {
    let hub = Server::hub(|_, _| Ok(false));
    let place = Place::new(&hub);
    fs::create_dir_all(place.repo().join("blobs")).unwrap();
    for bytes in [vec![0; 9000], vec![0; 50_072], vec![0; 60_000]] {
        fs::write(place.partial(), bytes).unwrap();
        place.pull_whole();
        fs::remove_dir_all(place.repo().join("snapshots")).unwrap();
        fs::remove_file(place.partial().with_extension("")).unwrap();
    }
}

#[cfg(unix)]
#[test]
fn links_in_the_way_are_not_written_through() {
    let hub = Server::hub(|_, _| Ok(false));
    let place = Place::new(&hub);
    let diary = place.dir.path().join("diary.txt");
    fs::write(&diary, "precious").unwrap();
    fs::create_dir_all(place.repo().join("blobs")).unwrap();
    fs::create_dir_all(place.repo().join("snapshots").join(COMMIT)).unwrap();
    fs::create_dir_all(place.repo().join("refs")).unwrap();
    for link in [
        place.partial(),
        place.partial().with_extension(""),
        place.repo().join("refs/main"),
        place.repo().join("snapshots").join(COMMIT).join("config.json"),
    ] {
        std::os::unix::fs::symlink(&diary, link).unwrap();
    }
    place.pull_whole();
    fs::remove_dir_all(place.repo().join("snapshots")).unwrap();
    fs::remove_file(place.partial().with_extension("")).unwrap();
    fs::hard_link(&diary, place.partial()).unwrap();
    place.pull_whole();
    assert_eq!(fs::read(&diary).unwrap(), b"precious");
}

#[test]
fn hostile_lists_are_refused() {
    let deep = format!(r#"{{"sha":"{COMMIT}","siblings":{}{}}}"#, "[".repeat(5000), "]".repeat(5000));
    let named = |sha: &str| format!(r#"{{"sha":{sha},"siblings":[{{"rfilename":"config.json"}}]}}"#);
    let long = "x".repeat(100_000);
    for (body, expected) in [
        ("[]".to_owned(), "expected JSON with `sha` and `siblings` from the hub, found"),
        ("<html>".to_owned(), "expected JSON"),
        (String::new(), "expected JSON"),
        (deep.clone(), "expected JSON"),
        (deep.replace("siblings", "x"), "missing field `siblings`"),
        (named("null"), "expected JSON"),
        (named("\"main\""), "expected a commit of 40 hexadecimal digits, found main"),
        (named("\"../../../../tmp/x\""), "expected a commit of 40 hexadecimal digits, found ../../"),
        (named("\"\\u001b]0;x\\u0007\""), "found \\u{1b}]0;x\\u{7}"),
        (named(&format!("\"{long}\"")), "xx.."),
        (format!(r#"{{"sha":"{COMMIT}","siblings":"{long}"}}"#), "expected JSON"),
        (format!(r#"{{"sha":"{COMMIT}","siblings":[{{"rfilename":["a"]}}]}}"#), "expected JSON"),
        (listing(&["config.json", MODEL]), "Qwen/Qwen2.5-VL-3B-Instruct: not found on the hub"),
        (
            listing(&["config.json", "model.safetensors.index.json", "model-\\..\\x.safetensors"]),
            "expected names of files",
        ),
        (listing(&[&long, "a\x1b[2J", "b"]), "found a\\u{1b}[2J, b, xxx"),
    ] {
        let hub = Server::hub(move |request, stream| {
            if !request.path.starts_with("/api/models/org/") {
                return Ok(false);
            }
            send(stream, "200 OK", "", body.as_bytes()).map(|()| true)
        });
        let error = Place::new(&hub).error();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn nothing_is_written_outside_of_the_cache() {
    let outside = |dir: &Path| {
        let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name != "cache").collect::<Vec<_>>()
    };
    for etag in ["../../../x", "/tmp/x", "..", "a\\..\\x", "C:x", "", "x y", "\u{e9}"] {
        let hub =
            odd_file(MODEL, true, move |request, stream| send_part(request, stream, &files()[MODEL], etag));
        let place = Place::new(&hub);
        let error = place.error();
        assert!(error.contains("ETag, found "), "{error}");
        assert!(outside(place.dir.path()).is_empty());
    }
    let hub = odd_file(MODEL, true, |_, stream| {
        let headers = format!(
            "ETag: \"{}\"\r\nX-Repo-Commit: ../../x\r\nContent-Range: bytes 0-0/9\r\n",
            "0a".repeat(20)
        );
        send(stream, "206 Partial", &headers, b"x")
    });
    assert!(Place::new(&hub).error().ends_with(&format!("expected commit {COMMIT}, found ../../x")));
    let hub = Server::hub(|request, stream| {
        if !request.path.starts_with("/api/") {
            return Ok(false);
        }
        let names = [
            "../../../evil",
            "/evil",
            "config.json",
            "config.json",
            MODEL,
            MODEL,
            "tokenizer.json",
            "a/../evil",
        ];
        send(stream, "200 OK", "", listing(&names).as_bytes()).map(|()| true)
    });
    let place = Place::new(&hub);
    place.pull_whole();
    assert!(outside(place.dir.path()).is_empty());
    assert_eq!(hub.requests().iter().filter(|request| request.is_for(MODEL)).count(), 2);
}

#[test]
fn two_downloads_at_once_wait_for_each_other() {
    let hub = odd_file(MODEL, false, |request, stream| {
        thread::sleep(Duration::from_millis(500));
        let bytes = &files()[MODEL];
        send_part(request, stream, bytes, &etag(MODEL, bytes))
    });
    let place = Place::new(&hub);
    thread::scope(|scope| {
        let pulls: Vec<_> = (0..3).map(|_| scope.spawn(|| place.pull())).collect();
        for pull in pulls {
            pull.join().unwrap().unwrap();
        }
    });
    place.pull_whole();
    let downloads = hub.requests().into_iter().filter(|request| request.is_for(MODEL) && !request.is_probe());
    assert_eq!(downloads.count(), 1);
}

#[test]
fn offline_nothing_is_asked() {
    let hub = Server::hub(|_, _| Ok(false));
    let mut place = Place::new(&hub);
    let folder = place.pull().unwrap();
    let asked = hub.requests().len();
    place.vars.push(("HF_HUB_OFFLINE", "yes".into()));
    let mut events = Vec::new();
    assert_eq!(place.pull_with(&mut |event| events.push(format!("{event:?}"))).unwrap(), folder);
    assert_eq!(events[0], "Offline");
    fs::remove_file(folder.join(MODEL)).unwrap();
    assert!(matches!(place.pull(), Err(Error::NotCached { .. })));
    assert_eq!(hub.requests().len(), asked);
}

#[test]
fn certificates_of_a_file() {
    let hub = Server::hub(|_, _| Ok(false));
    let mut place = Place::new(&hub);
    let file = place.dir.path().join("ca.pem");
    fs::write(&file, "no certificate").unwrap();
    place.vars.push(("SSL_CERT_FILE", file.clone().into()));
    assert!(place.error().ends_with("ca.pem: expected certificates in PEM format, found none"));
    fs::remove_file(&file).unwrap();
    place.pull_whole();
}

#[test]
fn addresses_of_hubs() {
    let hub = Server::hub(|_, _| Ok(false));
    for endpoint in ["huggingface.co", "ftp://host", "https://me:secret@host", "https://host?x", "\u{7}"] {
        let mut place = Place::new(&hub);
        place.vars[1].1 = endpoint.into();
        let expected = "HF_ENDPOINT: expected http:// or https:// and a host, without a user name";
        assert_eq!(place.error(), expected);
    }
    let mut place = Place::new(&hub);
    place.vars[1].1 = format!("{}/", hub.url()).into();
    place.pull_whole();
}
