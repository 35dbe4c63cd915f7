//! Relative links of the Markdown pages: each must lead to a file, and to a heading where it names one.

use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result};

/// Prints every broken link of the pages in the repository; `true` if there is none.
pub(super) fn run(root: &Path) -> Result<bool> {
    let mut pages = Vec::new();
    for entry in fs::read_dir(root)? {
        let path = entry?.path();
        if is_page(&path) {
            pages.push(path);
        }
    }
    for folder in ["docs", "crates", ".github"] {
        collect(&root.join(folder), &mut pages)?;
    }
    pages.sort();
    let mut broken = 0;
    for page in &pages {
        let text = fs::read_to_string(page).with_context(|| page.display().to_string())?;
        for (line, target) in links(&text) {
            if let Some(problem) = problem(page, &target)? {
                broken += 1;
                println!("{}:{line}: {target}: {problem}", page.strip_prefix(root)?.display());
            }
        }
    }
    println!("links: {} ({} pages)", if broken == 0 { "ok" } else { "FAILED" }, pages.len());
    Ok(broken == 0)
}

fn is_page(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "md")
}

fn collect(folder: &Path, pages: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, pages)?;
        } else if is_page(&path) {
            pages.push(path);
        }
    }
    Ok(())
}

/// Lines outside of fenced code, numbered from 1.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    text.lines().enumerate().filter_map(move |(i, line)| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        (!fenced && !fence).then_some((i + 1, line))
    })
}

/// Targets of `[text](target)`, `![text](target)`, `src="target"` and `href="target"`, with their lines.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in prose(text) {
        // Every second piece between backticks is code.
        let line: String = line.split('`').step_by(2).collect::<Vec<_>>().join("code");
        for (open, close) in [("](", ')'), ("src=\"", '"'), ("href=\"", '"')] {
            for rest in line.split(open).skip(1) {
                if let Some((target, _)) = rest.split_once(close) {
                    found.push((number, target.split(' ').next().unwrap_or(target).to_owned()));
                }
            }
        }
    }
    found
}

/// Why a link of `page` leads nowhere.
fn problem(page: &Path, target: &str) -> Result<Option<String>> {
    if target.contains("://") || target.starts_with("mailto:") {
        return Ok(None);
    }
    let (file, heading) = target.split_once('#').map_or((target, None), |(f, h)| (f, Some(h)));
    let path = if file.is_empty() { page.to_owned() } else { page.with_file_name("").join(file) };
    let path = normal(&path);
    if !path.exists() {
        return Ok(Some("no such file".to_owned()));
    }
    let Some(heading) = heading.filter(|_| is_page(&path)) else { return Ok(None) };
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let known = prose(&text).any(|(_, line)| line.starts_with('#') && slug(line) == heading);
    Ok((!known).then(|| format!("no heading #{heading} in {}", path.display())))
}

/// The path with `..` taken as the folder above, also below a folder that is a link.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        if part == Component::ParentDir {
            normal.pop();
        } else {
            normal.push(part);
        }
    }
    normal
}

/// The anchor that GitHub and mdBook give a heading.
fn slug(heading: &str) -> String {
    let words = heading.trim_start_matches('#').trim().to_lowercase();
    words
        .chars()
        .filter_map(|c| match c {
            ' ' => Some('-'),
            '-' | '_' => Some(c),
            c => c.is_alphanumeric().then_some(c),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_found_outside_of_code() {
        let text = "[a](x.md) and ![b](y.png \"title\")\n```\n[c](no)\n```\n`[d](no)` <img src=\"z.png\">\n";
        let found = links(text);
        let expected = [(1, "x.md"), (1, "y.png"), (5, "z.png")];
        assert_eq!(found.iter().map(|(n, t)| (*n, t.as_str())).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn headings_become_anchors() {
        for (heading, anchor) in [
            ("## Which code is proved how", "which-code-is-proved-how"),
            ("# `--model`: a folder", "--model-a-folder"),
        ] {
            assert_eq!(slug(heading), anchor);
        }
    }

    #[test]
    fn a_link_without_a_file_or_heading_is_a_problem() {
        let folder = tempfile::tempdir().unwrap();
        let page = folder.path().join("page.md");
        fs::write(&page, "# Title\n").unwrap();
        for (target, broken) in [
            ("page.md", false),
            ("#title", false),
            ("page.md#title", false),
            ("https://example.org/nowhere", false),
            ("none.md", true),
            ("page.md#other", true),
        ] {
            assert_eq!(problem(&page, target).unwrap().is_some(), broken, "{target}");
        }
    }
}
