//! `cargo xtask measure`: size, structure and wording of the workspace in numbers.

mod comments;
mod findings;
mod graph;
mod homonyms;
mod names;
mod resolve;
mod source;
mod table;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use clap::Args;
use lance_mm_pipelines::staged::StagedFolder;

use findings::{Findings, Function};
use source::{Crate, Lines, Workspace};
use table::Table;

const KERNELS: &str = "crates/lance-mm-tensor/src/kernels";

/// Print size, structure and wording of the workspace in numbers.
///
/// Product lines are those of `src/` outside `#[cfg(test)]`; tests, benches and examples count as tests.
#[derive(Args)]
pub(crate) struct Measure {
    /// Measure this revision instead of the working tree.
    #[arg(long, value_name = "REV")]
    at: Option<String>,
    /// List every finding, not only their number.
    #[arg(long)]
    list: bool,
}

impl Measure {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let Some(revision) = &self.at else {
            self.print(&root)?;
            return Ok(ExitCode::SUCCESS);
        };
        // Removed at the end, never committed.
        let folder = StagedFolder::create(&std::env::temp_dir().join("lance-mm-measure"))?;
        extract(&root, revision, folder.path())?;
        println!("revision {revision}\n");
        self.print(folder.path())?;
        Ok(ExitCode::SUCCESS)
    }

    fn print(&self, root: &Path) -> Result<()> {
        let workspace = Workspace::read(root)?;
        let findings: Vec<Findings> = workspace.crates.iter().map(Findings::of).collect();
        sizes(&workspace, &findings);
        longest(&findings);
        self.cycles(&workspace);
        self.places("docs that begin with \"What\"", findings.iter().flat_map(|f| &f.what_docs));
        self.places("`match` on a bool", findings.iter().flat_map(|f| &f.bool_matches));
        comments::print(&workspace);
        homonyms::print(&workspace);
        Ok(())
    }

    fn cycles(&self, workspace: &Workspace) {
        println!("\ncircles: strongly connected components of more than one node, tests aside");
        println!("  (a file's uses of the module it is a part of do not count)");
        for (level, by_file) in [("modules below the crate root", false), ("files", true)] {
            println!("  {level}:");
            for krate in &workspace.crates {
                for circle in graph::circles(workspace, krate, by_file) {
                    println!("    {}: {}", krate.name, circle.nodes.join(", "));
                    if self.list {
                        circle.edges.iter().for_each(|edge| println!("      {edge}"));
                    }
                }
            }
        }
    }

    fn places<'a>(&self, title: &str, places: impl Iterator<Item = &'a String>) {
        let places: Vec<&String> = places.collect();
        println!("\n{title}: {}", places.len());
        if self.list {
            places.iter().for_each(|place| println!("  {place}"));
        }
    }
}

/// Writes the Rust sources and manifests of a revision below `folder`.
fn extract(root: &Path, revision: &str, folder: &Path) -> Result<()> {
    let archive = folder.join("tree.tar");
    let mut git = Command::new("git");
    git.current_dir(root).args(["archive", "--format=tar", "--output"]).arg(&archive).arg(revision);
    git.args(["--", ":(top,glob)**/*.rs", ":(top,glob)**/*.metal", ":(top,glob)**/Cargo.toml"]);
    let mut tar = Command::new("tar");
    tar.current_dir(folder).arg("--extract").arg("--file").arg(&archive);
    for command in [&mut git, &mut tar] {
        let status = command.status().with_context(|| format!("cannot run {:?}", command.get_program()))?;
        ensure!(status.success(), "{:?}: {status}", command.get_program());
    }
    Ok(())
}

fn sizes(workspace: &Workspace, findings: &[Findings]) {
    let mut table = Table::new(&[
        "crate",
        "files",
        "product",
        "code",
        "docs",
        "comments",
        "tests",
        "all",
        "file median",
        "file max",
        "fn median",
        "fn max",
    ]);
    let all: Vec<(&Crate, &Findings)> = workspace.crates.iter().zip(findings).collect();
    for one in &all {
        table.row(size(&one.0.name, std::slice::from_ref(one)));
    }
    let product: Vec<_> = all.iter().copied().filter(|(krate, _)| krate.product).collect();
    table.row(size("published", &product));
    table.row(size("workspace", &all));
    print!("lines (code, docs and comments are those of product lines, without blank ones)\n{table}");
}

/// A row of [`sizes`].
fn size(name: &str, crates: &[(&Crate, &Findings)]) -> [String; 12] {
    let lines: Lines = crates.iter().map(|(krate, _)| krate.lines()).sum();
    let files = crates.iter().flat_map(|(krate, _)| krate.files.iter().filter(|file| !file.test));
    let mut files: Vec<(usize, String)> =
        files.map(|file| (file.lines.all, short_path(&file.path.display().to_string()).to_owned())).collect();
    files.sort();
    let functions = crates.iter().flat_map(|(_, findings)| &findings.functions);
    let mut functions: Vec<(usize, String)> = functions.map(|f| (f.lines, f.name.clone())).collect();
    functions.sort();
    let middle = |all: &[(usize, String)]| all.get(all.len() / 2).map_or(0, |(lines, _)| *lines);
    let most =
        |all: &[(usize, String)]| all.last().map_or(String::new(), |(lines, name)| format!("{lines} {name}"));
    [
        name.to_owned(),
        files.len().to_string(),
        lines.product().to_string(),
        lines.code.to_string(),
        lines.docs.to_string(),
        lines.comments.to_string(),
        lines.tests.to_string(),
        lines.all.to_string(),
        middle(&files).to_string(),
        most(&files),
        middle(&functions).to_string(),
        most(&functions),
    ]
}

fn short_path(path: &str) -> &str {
    path.split_once("/src/").map_or(path, |(_, rest)| rest)
}

fn longest(findings: &[Findings]) {
    let mut all: Vec<&Function> = findings.iter().flat_map(|f| &f.functions).collect();
    all.retain(|function| !function.kernel);
    all.sort_by_key(|function| (std::cmp::Reverse(function.lines), function.place.clone()));
    println!("\nlongest functions outside kernels/");
    for function in all.iter().take(10) {
        println!("  {:4}  {}  {}", function.lines, function.place, function.name);
    }
}

/// `path:line`.
fn place(path: &Path, line: usize) -> String {
    format!("{}:{line}", path.display())
}

/// Every file below `dir` with this extension, sorted.
fn files(dir: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() && path.file_name().is_none_or(|name| name != "target") {
            found.extend(files(&path, extension)?);
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
