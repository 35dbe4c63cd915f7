//! Licences and sources of all dependencies, by the rules of `deny.toml`.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Runs `cargo deny check`. Where cargo-deny is not installed, checks licences and sources without it, and says what was
/// left out.
pub(super) fn run(root: &Path) -> Result<bool> {
    let ok = match Command::new("cargo-deny").arg("check").current_dir(root).status() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            println!(
                "advisories: SKIPPED, not checked: cargo-deny is not installed (cargo install cargo-deny --locked)"
            );
            offline(root)?
        }
        status => status.context("cannot run cargo-deny")?.success(),
    };
    println!("dependencies: {}", if ok { "ok" } else { "FAILED" });
    Ok(ok)
}

/// Checks every package that is built on this system.
fn offline(root: &Path) -> Result<bool> {
    let rules = fs::read_to_string(root.join("deny.toml")).context("deny.toml")?;
    let allowed = allowed(&rules)?;
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["tree", "--workspace", "--edges", "normal,build", "--prefix", "none", "--no-dedupe"])
        .args(["--format", "{p}|{l}"])
        .current_dir(root)
        .output()
        .context("cannot run cargo tree")?;
    ensure!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).context("cargo tree")?;
    let packages: BTreeSet<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    let problems: Vec<String> = packages.iter().filter_map(|line| problem(line, &allowed)).collect();
    problems.iter().for_each(|problem| println!("  {problem}"));
    println!("licences and sources: {} packages, {} problems", packages.len(), problems.len());
    Ok(problems.is_empty())
}

/// Reason to refuse a package, given as `NAME vVERSION (what it is) (place)|LICENCE`.
fn problem(line: &str, allowed: &BTreeSet<&str>) -> Option<String> {
    let (package, licence) = line.split_once('|').unwrap_or((line, ""));
    // A package of crates.io has no place; one of a folder has its path.
    let place = package.rsplit_once(" (").map(|(_, place)| place.trim_end_matches(')'));
    if let Some(place) = place.filter(|place| *place != "proc-macro" && !Path::new(place).is_absolute()) {
        return Some(format!("{package}: expected a package of crates.io, found {place}"));
    }
    (!accepted(licence, allowed))
        .then(|| format!("{package}: licence {licence:?} is not allowed by deny.toml"))
}

/// The list `allow` of the section `[licenses]`.
fn allowed(toml: &str) -> Result<BTreeSet<&str>> {
    let section = toml.split_once("[licenses]").context("deny.toml: expected a section [licenses]")?.1;
    let list = section.split_once("allow = [").context("deny.toml: expected licenses.allow")?.1;
    let list = list.split_once(']').context("deny.toml: expected the end of licenses.allow")?.0;
    Ok(list.split('"').skip(1).step_by(2).collect())
}

/// Whether the licence, an SPDX expression, can be met by allowed ones. In older manifests `/` means `OR`.
fn accepted(licence: &str, allowed: &BTreeSet<&str>) -> bool {
    let licence = licence.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words = licence.split_whitespace().peekable();
    any(&mut words, allowed) && words.peek().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any(words: &mut Words<'_>, allowed: &BTreeSet<&str>) -> bool {
    let mut ok = all(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        ok |= all(words, allowed);
    }
    ok
}

fn all(words: &mut Words<'_>, allowed: &BTreeSet<&str>) -> bool {
    let mut ok = one(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        ok &= one(words, allowed);
    }
    ok
}

fn one(words: &mut Words<'_>, allowed: &BTreeSet<&str>) -> bool {
    match words.next() {
        Some("(") => any(words, allowed) & (words.next() == Some(")")),
        Some(name) => {
            // An exception grants more than the licence does.
            if words.next_if_eq(&"WITH").is_some() {
                words.next();
            }
            allowed.contains(name)
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licences_are_read_as_expressions() {
        let allowed = allowed("[licenses]\nallow = [\"MIT\", \"ISC\"]").unwrap();
        for (licence, expected) in [
            ("MIT", true),
            ("GPL-3.0", false),
            ("", false),
            ("GPL-3.0 OR MIT", true),
            ("GPL-3.0/MIT", true),
            ("GPL-3.0 AND MIT", false),
            ("ISC AND (GPL-3.0 OR MIT)", true),
            ("ISC AND (GPL-3.0 OR MIT", false),
            ("(ISC OR MIT) AND GPL-3.0", false),
            ("MIT WITH some-exception", true),
            ("MIT ISC", false),
        ] {
            assert_eq!(accepted(licence, &allowed), expected, "{licence}");
        }
    }

    #[test]
    fn places_other_than_crates_io_are_refused() {
        let allowed = BTreeSet::from(["MIT"]);
        assert_eq!(problem("a v1.0.0|MIT", &allowed), None);
        assert_eq!(problem("a v1.0.0 (proc-macro)|MIT", &allowed), None);
        assert_eq!(problem("a v1.0.0 (/repository/crates/a)|MIT", &allowed), None);
        let git = problem("a v1.0.0 (https://example.org/a#0123)|MIT", &allowed).unwrap();
        assert!(git.ends_with("expected a package of crates.io, found https://example.org/a#0123"), "{git}");
        let licence = problem("a v1.0.0|SSPL-1.0", &allowed).unwrap();
        assert_eq!(licence, "a v1.0.0: licence \"SSPL-1.0\" is not allowed by deny.toml");
    }
}
