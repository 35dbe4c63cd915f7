//! Outputs after a power cut: the order of system calls, under `strace`.
//!
//! A file system may write a rename to the disk before the bytes of what is renamed, unless they were flushed first; and a
//! rename is on the disk for certain after the folder of the new name was flushed.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::generation::model;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures");
const WRITES: &str = "write,pwrite64,writev,pwritev,sendfile,copy_file_range,ftruncate";
const OTHERS: &str = "fsync,fdatasync,rename,renameat,renameat2";

/// Checks that `out` was flushed before its rename, with all files below it, and its folder after.
fn check(log: &str, out: &Path) -> Result<(), String> {
    let (mut dirty, mut flushed) = (BTreeSet::<PathBuf>::new(), BTreeSet::<PathBuf>::new());
    let (mut renamed, mut durable) = (false, false);
    let parent = out.parent().unwrap();
    let below = |dirty: &BTreeSet<PathBuf>, folder: &Path| {
        dirty
            .iter()
            .find(|path| path.starts_with(folder))
            .map(|path| format!("{}: not flushed", path.display()))
    };
    for line in log.lines() {
        // `PID name(args) = result`; a call that another thread interrupts has its arguments in the first line.
        let call = line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ');
        let Some((name, args)) = call.split_once('(') else { continue };
        if line.contains(" = -1 ") {
            continue;
        }
        if name.starts_with("rename") {
            let mut paths = args.split('"').skip(1).step_by(2).map(PathBuf::from);
            let (from, to) = (paths.next().unwrap(), paths.next().unwrap());
            if to == out {
                if let Some(error) = below(&dirty, &from) {
                    return Err(error);
                }
                if !flushed.contains(&from) {
                    return Err(format!("{}: not flushed", from.display()));
                }
                renamed = true;
            }
            let moved: Vec<PathBuf> = dirty.iter().filter(|path| path.starts_with(&from)).cloned().collect();
            for path in moved {
                dirty.remove(&path);
                // Joining nothing would put a slash behind the name of a file.
                let rest = path.strip_prefix(&from).unwrap();
                dirty.insert(if rest.as_os_str().is_empty() { to.clone() } else { to.join(rest) });
            }
            continue;
        }
        // `fd</path>`
        let paths = args
            .split('<')
            .skip(1)
            .filter_map(|rest| rest.split_once('>'))
            .map(|(path, _)| PathBuf::from(path));
        for path in paths.filter(|path| path.starts_with(parent)) {
            if name.ends_with("sync") {
                durable |= renamed && path == parent;
                dirty.remove(&path);
                flushed.insert(path);
            } else {
                dirty.insert(path);
            }
        }
    }
    match below(&dirty, out) {
        Some(error) => Err(error),
        None if !renamed => Err("never renamed".into()),
        None if !durable => Err("its folder was not flushed after the rename".into()),
        None => Ok(()),
    }
}

/// Runs the program under `strace`; `None` where that cannot be.
fn traced(log: &Path, args: &[&OsStr]) -> Option<String> {
    let strace = || {
        let mut command = Command::new("strace");
        command.args(["-f", "-y", "-s", "0", "-e", &format!("trace={WRITES},{OTHERS}"), "-o"]).arg(log);
        command
    };
    if !strace().arg("true").status().is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED, order of system calls not checked: strace is not installed or may not trace");
        return None;
    }
    let output = strace().arg(env!("CARGO_BIN_EXE_lance-mm")).args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(fs::read_to_string(log).unwrap())
}

#[test]
fn outputs_are_flushed_before_they_have_their_names() {
    let files = model();
    let root = fs::canonicalize(files.root()).unwrap();
    let [und, nano] = ["understanding/ckpt/mlx", "nano-bf16"].map(|name| Path::new(FIXTURES).join(name));
    let [converted, quantized, image] = ["converted", "quantized", "a.png"].map(|name| root.join(name));
    let model = root.join("model");
    let runs: [(&Path, Vec<&OsStr>); 3] = [
        (&converted, vec!["convert".as_ref(), "-q".as_ref(), und.as_ref(), converted.as_ref()]),
        (
            &quantized,
            ["quantize", "-q", "--recipe", "rtn"]
                .map(OsStr::new)
                .into_iter()
                .chain([nano.as_ref(), quantized.as_ref()])
                .collect(),
        ),
        (
            &image,
            ["generate", "A red fox", "--size", "32x32", "--steps", "1"]
                .map(OsStr::new)
                .into_iter()
                .chain(["-m".as_ref(), model.as_ref(), "-o".as_ref(), image.as_ref()])
                .collect(),
        ),
    ];
    for (out, args) in runs {
        let Some(log) = traced(&root.join("log"), &args) else { return };
        if let Err(error) = check(&log, out) {
            panic!("{args:?}: {error}\n{log}");
        }
    }
}

#[test]
fn a_wrong_order_is_seen() {
    let write = "1 write(3</r/.a/x>, \"\"..., 4) = 4";
    let fsync = "1 fsync(3</r/.a/x>) = 0";
    let folder = "1 fsync(4</r/.a>) = 0";
    let rename = "1 rename(\"/r/.a\", \"/r/out\") = 0";
    let parent = "1 fsync(5</r>) = 0";
    let cases: [(&[&str], Result<(), &str>); 7] = [
        (&[write, fsync, folder, rename, parent], Ok(())),
        (&[write, folder, rename, parent], Err("/r/.a/x: not flushed")),
        (&[write, fsync, write, folder, rename, parent], Err("/r/.a/x: not flushed")),
        (&[write, fsync, rename, parent], Err("/r/.a: not flushed")),
        (&[write, fsync, folder, parent], Err("never renamed")),
        (&[write, fsync, folder, parent, rename], Err("its folder was not flushed after the rename")),
        (
            &[write, folder, "1 rename(\"/r/.a/x\", \"/r/.a/y\") = 0", rename, parent],
            Err("/r/.a/y: not flushed"),
        ),
    ];
    for (lines, expected) in cases {
        let found = check(&lines.join("\n"), Path::new("/r/out"));
        assert_eq!(found, expected.map_err(str::to_owned), "{lines:?}");
    }
}
