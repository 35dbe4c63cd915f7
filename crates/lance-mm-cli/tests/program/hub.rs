//! `lance-mm pull` from a hub on this machine, and models in its cache.

mod server;

use std::fs;
use std::process::Command;

use crate::support::{Files, Run, command, lance_mm, nano, run};
use server::{COMMIT, Hub};

const PLATE: &str = "What is the license plate number of the car?";

/// A cache, and a hub that has the bundled model as `tiny/nano`.
fn hub() -> (Files, Hub) {
    let hub = Hub::start();
    for (name, bytes) in nano() {
        hub.add("tiny/nano", name, bytes);
    }
    (Files::demos(), hub)
}

fn at(files: &Files, hub: &Hub) -> Command {
    let mut command = command();
    command.env("HF_HOME", files.path("cache")).env("HF_ENDPOINT", format!("{}/", hub.url()));
    command
}

fn pull(files: &Files, hub: &Hub, args: &[&str]) -> Run {
    run(at(files, hub).arg("pull").args(args))
}

#[test]
fn pulled_once_it_answers_without_the_hub() {
    let (files, hub) = hub();
    hub.add("tiny/nano", "vae.safetensors", lance_mm_nano::VIT);
    hub.add("tiny/nano", "README.md", b"text");
    let first = pull(&files, &hub, &["tiny/nano"]);
    let folder = files.path("cache/hub/models--tiny--nano/snapshots").join(COMMIT);
    assert_eq!((first.code, first.stdout.trim_end()), (0, folder.to_str().unwrap()), "{}", first.stderr);
    assert!(first.stderr.starts_with("tiny/nano: 5 files to download, 4.5 MB\n"), "{}", first.stderr);
    assert!(
        first.stderr.ends_with("next: lance-mm ask --model tiny/nano IMAGE \"QUESTION\"\n"),
        "{}",
        first.stderr
    );
    for (name, bytes) in nano() {
        assert!(fs::read(folder.join(name)).unwrap() == bytes, "{name}");
    }
    assert!(!folder.join("vae.safetensors").exists() && !folder.join("README.md").exists());

    assert_eq!(run(at(&files, &hub).args(["inspect", "tiny/nano"])).code, 0);
    let fox = files.arg("fox.png");
    let draw = || run(at(&files, &hub).args(["generate", "A fox", "-o", &fox, "-m", "tiny/nano"]));
    assert!(draw().error().ends_with("run: lance-mm pull --all tiny/nano"), "{}", draw().stderr);
    let some = pull(&files, &hub, &["--offline", "--all", "tiny/nano"]);
    assert!(some.stderr.starts_with("note: no VAE of tiny/nano is in the cache"), "{}", some.stderr);

    hub.forget();
    let second = pull(&files, &hub, &["tiny/nano"]);
    assert!(second.stderr.starts_with("tiny/nano: everything is in the cache\n"), "{}", second.stderr);
    assert!(hub.requests().iter().all(|request| !request.contains("bytes=0-\n")));
    let all = pull(&files, &hub, &["tiny/nano", "--all", "-q"]);
    assert_eq!((all.code, all.stderr.as_str()), (0, ""));
    assert!(folder.join("vae.safetensors").exists());

    let url = hub.url();
    drop(hub);
    let alone = |args: &[&str]| {
        run(command().args(args).env("HF_HOME", files.path("cache")).env("HF_ENDPOINT", &url))
    };
    let offline = alone(&["pull", "--offline", "tiny/nano"]);
    assert_eq!(
        (offline.code, &offline.stdout, offline.stderr.contains("HF_HUB_OFFLINE")),
        (0, &first.stdout, false)
    );
    let cache = files.path("cache/hub");
    let env =
        |args: &[&str]| run(command().args(args).env("HF_HUB_CACHE", &cache).env("HF_HUB_OFFLINE", "on"));
    let pulled = env(&["pull", "tiny/nano"]);
    assert_eq!((pulled.code, &pulled.stdout), (0, &first.stdout), "{}", pulled.stderr);
    assert!(pulled.stderr.starts_with("note: HF_HUB_OFFLINE is set"), "{}", pulled.stderr);
    let answer = alone(&["ask", "--model", "tiny/nano", &files.demo(2), PLATE]);
    assert_eq!((answer.stdout.as_str(), answer.stderr.as_str()), ("BX62 BFY\n", ""));
    let online = alone(&["pull", "tiny/nano"]);
    assert!(online.error().ends_with("(it is in the cache: --offline)"), "{}", online.stderr);
    let other = alone(&["pull", "--offline", "tiny/other"]);
    assert!(other.error().starts_with("tiny/other: not in the hub's cache"), "{}", other.stderr);
}

#[test]
fn a_connection_that_breaks_is_taken_up_again() {
    let (files, hub) = hub();
    hub.cut("model.safetensors", 500_000, 2);
    let pulled = pull(&files, &hub, &["tiny/nano"]);
    assert_eq!(pulled.code, 0, "{}", pulled.stderr);
    let resumed =
        |from: &str| hub.requests().iter().any(|r| r.contains("model.safetensors") && r.contains(from));
    assert!(resumed("bytes=500000-") && resumed("bytes=1000000-"), "{:?}", hub.requests());
}

#[test]
fn an_interrupted_download_goes_on_with_the_next_command() {
    let (files, hub) = hub();
    hub.cut("model.safetensors", 600_000, 1);
    hub.refuse_after_cut();
    let first = pull(&files, &hub, &["-q", "tiny/nano"]);
    assert!(
        first.error().ends_with("HTTP status 503; 600000 of 1629464 bytes are in the cache: rerun to resume"),
        "{}",
        first.stderr
    );
    let ask = run(at(&files, &hub).args(["ask", "--model", "tiny/nano", &files.demo(2), PLATE]));
    assert!(ask.error().ends_with("only a part of it is in the hub's cache; run: lance-mm pull tiny/nano"));
    assert!(pull(&files, &hub, &["--offline", "tiny/nano"]).error().contains("only a part of it"));

    hub.recover();
    let second = pull(&files, &hub, &["tiny/nano"]);
    assert!(second.stderr.starts_with("tiny/nano: 1 file to download, 1.0 MB\n"), "{}", second.stderr);
    assert!(hub.requests().iter().any(|r| r.contains("model.safetensors") && r.contains("bytes=600000-")));
    let answer = run(at(&files, &hub).args(["ask", "-m", "tiny/nano", &files.demo(2), PLATE]));
    assert_eq!(answer.stdout, "BX62 BFY\n");
}

#[test]
fn a_branch_is_found_after_its_commit_was_pulled() {
    let (files, hub) = hub();
    let commit = pull(&files, &hub, &[&format!("tiny/nano@{COMMIT}"), "-q"]);
    let branch = pull(&files, &hub, &["tiny/nano"]);
    assert_eq!((branch.code, &branch.stdout), (0, &commit.stdout), "{}", branch.stderr);
    assert!(branch.stderr.starts_with("tiny/nano: everything is in the cache\n"), "{}", branch.stderr);
    // As after a pull of another commit, to which the branch has gone and come back.
    let refers = files.path("cache/hub/models--tiny--nano/refs/main");
    fs::write(&refers, "f".repeat(40)).unwrap();
    assert_eq!(pull(&files, &hub, &["tiny/nano", "-q"]).code, 0);
    assert_eq!(fs::read_to_string(refers).unwrap(), COMMIT);
    let answer = run(at(&files, &hub).args(["ask", "-m", "tiny/nano", &files.demo(2), PLATE]));
    assert_eq!(answer.stdout, "BX62 BFY\n", "{}", answer.stderr);
}

#[test]
fn what_arrives_damaged_is_not_kept() {
    let (files, hub) = hub();
    hub.damage("vit.safetensors");
    let damaged = pull(&files, &hub, &["-q", "tiny/nano"]);
    assert!(damaged.error().contains("vit.safetensors: expected SHA-256 "), "{}", damaged.stderr);
    hub.recover();
    assert_eq!(pull(&files, &hub, &["-q", "tiny/nano"]).code, 0);
}

#[test]
fn what_the_hub_does_not_have() {
    let (files, hub) = hub();
    hub.add("someone/else", "Lance_3B/model.safetensors", b"x");
    hub.add("someone/else", "README.md", b"x");
    let error = |args: &[&str]| pull(&files, &hub, args).error().to_owned();
    assert_eq!(error(&["nobody/none"]), "nobody/none: not found on the hub");
    assert_eq!(error(&["tiny/nano", "--revision", "v9"]), "tiny/nano@v9: not found on the hub");
    assert_eq!(
        error(&["secret/one"]),
        "secret/one: not on the hub, or private or gated (then HF_TOKEN must allow it)"
    );
    assert!(
        error(&["someone/else"])
            .contains("found Lance_3B/model.safetensors, README.md; a model that can be read is")
    );
    assert!(error(&["nano"]).starts_with("\"nano\": expected org/name of a repository"));
    let demo = files.demo(2);
    let address = "https://huggingface.co/tiny/nano/tree/main";
    assert!(error(&[address]).ends_with("expected org/name of a repository: write tiny/nano"));
    for command in [&["inspect", address][..], &["ask", "-m", address, &demo, "What?"]] {
        assert!(lance_mm(command).error().ends_with(": write tiny/nano"));
    }
    assert!(error(&["tiny/nano", "--revision", "../x"]).starts_with("--revision: expected a branch"));
    assert!(lance_mm(["pull", "--offline", "a/b"]).error().contains("not in the hub's cache"));
}

#[test]
fn a_token_and_the_common_tokenizer() {
    let hub = Hub::start();
    let files = Files::demos();
    for (name, bytes) in nano() {
        let repo = if name == "tokenizer.json" { "Qwen/Qwen2.5-VL-3B-Instruct" } else { "tiny/nano" };
        hub.add(repo, name, bytes);
    }
    let pulled = run(at(&files, &hub).args(["pull", "tiny/nano"]).env("HF_TOKEN", "hf_abc\n"));
    assert_eq!(pulled.code, 0, "{}", pulled.stderr);
    assert!(
        pulled.stderr.contains("has no tokenizer: taking the one of Qwen/Qwen2.5-VL-3B-Instruct"),
        "{}",
        pulled.stderr
    );
    assert!(
        hub.requests().iter().all(|request| request.to_lowercase().contains("authorization: bearer hf_abc"))
    );
    let answer = run(at(&files, &hub).args(["ask", "-m", "tiny/nano", &files.demo(2), PLATE]));
    assert_eq!(answer.stdout, "BX62 BFY\n");
    assert_eq!(pull(&files, &hub, &["--offline", "tiny/nano"]).code, 0);
}
