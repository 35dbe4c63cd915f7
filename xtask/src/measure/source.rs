//! The members of the workspace: their files, their lines and the tree of their modules.

use std::collections::HashMap;
use std::fs;
use std::iter::Sum;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use quote::ToTokens;
use syn::spanned::Spanned;
use syn::{Attribute, Item};

use super::names::Scope;
use super::{KERNELS, files};

/// All members, and the modules of all of them.
pub(super) struct Workspace {
    pub(super) crates: Vec<Crate>,
    /// Modules outside `#[cfg(test)]`; those of one crate lie one after the other, its root first.
    pub(super) modules: Vec<Module>,
    /// Metal sources of the kernels.
    pub(super) metal: Vec<String>,
}

/// A member.
pub(super) struct Crate {
    pub(super) name: String,
    /// Whether it is published.
    pub(super) product: bool,
    /// Folder relative to the workspace.
    pub(super) dir: PathBuf,
    pub(super) files: Vec<File>,
    /// Module of `src/lib.rs`.
    pub(super) library: Option<usize>,
}

/// A Rust file.
pub(super) struct File {
    /// Relative to the workspace.
    pub(super) path: PathBuf,
    pub(super) text: String,
    pub(super) ast: syn::File,
    /// Nothing of it is product code.
    pub(super) test: bool,
    pub(super) lines: Lines,
}

/// A module and the names it declares.
pub(super) struct Module {
    pub(super) krate: usize,
    /// Index among the crate's files.
    pub(super) file: usize,
    pub(super) parent: Option<usize>,
    pub(super) path: Vec<String>,
    pub(super) items: Vec<Item>,
    pub(super) scope: Scope,
}

/// Numbers of lines.
#[derive(Clone, Copy, Default)]
pub(super) struct Lines {
    pub(super) all: usize,
    pub(super) tests: usize,
    pub(super) code: usize,
    pub(super) docs: usize,
    pub(super) comments: usize,
}

impl Lines {
    pub(super) fn product(self) -> usize {
        self.all - self.tests
    }
}

impl Sum for Lines {
    fn sum<I: Iterator<Item = Self>>(lines: I) -> Self {
        lines.fold(Self::default(), |a, b| Self {
            all: a.all + b.all,
            tests: a.tests + b.tests,
            code: a.code + b.code,
            docs: a.docs + b.docs,
            comments: a.comments + b.comments,
        })
    }
}

impl Crate {
    pub(super) fn lines(&self) -> Lines {
        self.files.iter().map(|file| file.lines).sum()
    }
}

/// Kind of a line.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Line {
    Blank,
    /// `//!`, docs of a module.
    ModuleDoc,
    /// `///`.
    Doc,
    /// `//`.
    Comment,
    Code,
}

impl Line {
    pub(super) fn of(text: &str) -> Self {
        let text = text.trim_start();
        if text.is_empty() {
            Self::Blank
        } else if text.starts_with("//!") {
            Self::ModuleDoc
        } else if text.starts_with("///") && !text.starts_with("////") {
            Self::Doc
        } else if text.starts_with("//") {
            Self::Comment
        } else {
            Self::Code
        }
    }
}

impl File {
    fn read(root: &Path, path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let ast = syn::parse_file(&text).with_context(|| path.display().to_string())?;
        let path = path.strip_prefix(root).context("a path below the root")?.to_owned();
        let lines = Lines { all: text.lines().count(), ..Lines::default() };
        Ok(Self { path, text, ast, test: true, lines })
    }

    /// The lines outside `#[cfg(test)]` with their numbers, counted from one.
    pub(super) fn product_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let tests = if self.test { vec![(1, usize::MAX)] } else { test_spans(&self.ast.items) };
        let within = move |line: &usize| tests.iter().any(|(first, last)| (first..=last).contains(&line));
        (1..).zip(self.text.lines()).filter(move |(line, _)| !within(line))
    }

    fn count(&mut self) {
        let mut lines = Lines { all: self.lines.all, tests: self.lines.all, ..Lines::default() };
        for (_, text) in self.product_lines() {
            lines.tests -= 1;
            match Line::of(text) {
                Line::Blank => {}
                Line::ModuleDoc | Line::Doc => lines.docs += 1,
                Line::Comment => lines.comments += 1,
                Line::Code => lines.code += 1,
            }
        }
        self.lines = lines;
    }
}

/// First and last lines of the items for tests only.
fn test_spans(items: &[Item]) -> Vec<(usize, usize)> {
    let mut spans = Vec::new();
    for item in items {
        if is_test(attributes(item)) {
            spans.push((item.span().start().line, item.span().end().line));
        } else if let Item::Mod(module) = item
            && let Some((_, items)) = &module.content
        {
            spans.extend(test_spans(items));
        }
    }
    spans
}

/// Whether an item is there for tests only.
pub(super) fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let mut text = attribute.meta.to_token_stream().to_string();
        text.retain(|c| !c.is_whitespace());
        let named = ["(test)", "(test,", "(doctest)"].iter().any(|form| text.contains(form));
        text == "test" || named && !text.contains("not(test") && !text.contains("any(test")
    })
}

/// The attributes of an item.
pub(super) fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

impl Workspace {
    pub(super) fn read(root: &Path) -> Result<Self> {
        let mut dirs: Vec<PathBuf> = Vec::new();
        for entry in fs::read_dir(root.join("crates")).context("crates")? {
            dirs.push(entry?.path());
        }
        dirs.extend([root.join("tests"), root.join("xtask")]);
        dirs.retain(|dir| dir.join("Cargo.toml").is_file());
        dirs.sort();
        let mut this = Self { crates: Vec::new(), modules: Vec::new(), metal: Vec::new() };
        for dir in dirs {
            this.read_crate(root, &dir)?;
        }
        for path in files(&root.join(KERNELS), "metal")? {
            this.metal.push(fs::read_to_string(path)?);
        }
        let roots: HashMap<String, usize> = this
            .crates
            .iter()
            .filter_map(|krate| Some((krate.name.replace('-', "_"), krate.library?)))
            .collect();
        for module in &mut this.modules {
            module.scope.external.clone_from(&roots);
        }
        Ok(this)
    }

    fn read_crate(&mut self, root: &Path, dir: &Path) -> Result<()> {
        let manifest = fs::read_to_string(dir.join("Cargo.toml"))?;
        let name = manifest.lines().find_map(|line| line.strip_prefix("name = "));
        let name = name.context("a manifest without a name")?.trim_matches('"').to_owned();
        let product = !manifest.lines().any(|line| line.trim() == "publish = false");
        let files = files(dir, "rs")?.iter().map(|path| File::read(root, path)).collect::<Result<_>>()?;
        let dir = dir.strip_prefix(root)?.to_owned();
        self.crates.push(Crate { name, product, dir, files, library: None });
        let krate = self.crates.len() - 1;
        for source in ["src/lib.rs", "src/main.rs", "build.rs"] {
            let path = self.crates[krate].dir.join(source);
            let Some(file) = self.crates[krate].files.iter().position(|file| file.path == path) else {
                continue;
            };
            let items = self.crates[krate].files[file].ast.items.clone();
            let module = self.read_module(Module {
                krate,
                file,
                parent: None,
                path: Vec::new(),
                scope: Scope::default(),
                items,
            });
            if source == "src/lib.rs" {
                self.crates[krate].library = Some(module);
            }
        }
        self.crates[krate].files.iter_mut().for_each(File::count);
        Ok(())
    }

    /// Adds a module and all below it; returns its index.
    fn read_module(&mut self, mut module: Module) -> usize {
        let (krate, file) = (module.krate, module.file);
        self.crates[krate].files[file].test = false;
        module.items.retain(|item| !is_test(attributes(item)));
        let children: Vec<syn::ItemMod> = module
            .items
            .iter()
            .filter_map(|item| if let Item::Mod(child) = item { Some(child.clone()) } else { None })
            .collect();
        module.scope.declare(&module.items);
        let path = module.path.clone();
        self.modules.push(module);
        let this = self.modules.len() - 1;
        for child in children {
            let name = child.ident.to_string();
            let path: Vec<String> = path.iter().cloned().chain([name.clone()]).collect();
            let (file, items) = match child.content {
                Some((_, items)) => (file, items),
                None => {
                    let Some(file) = self.child_file(krate, file, &name) else { continue };
                    (file, self.crates[krate].files[file].ast.items.clone())
                }
            };
            let scope = Scope::default();
            let child = self.read_module(Module { krate, file, parent: Some(this), path, items, scope });
            self.modules[this].scope.add_module(name, child);
        }
        this
    }

    /// The file of `mod name;` in `parent`.
    fn child_file(&self, krate: usize, parent: usize, name: &str) -> Option<usize> {
        let files = &self.crates[krate].files;
        let parent = &files[parent].path;
        let root = parent.ends_with("src/lib.rs") || parent.ends_with("src/main.rs");
        let dir = if root { parent.parent()?.to_owned() } else { parent.with_extension("") };
        let path = dir.join(name).with_extension("rs");
        files.iter().position(|file| file.path == path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> File {
        let ast = syn::parse_file(text).unwrap();
        let lines = Lines { all: text.lines().count(), ..Lines::default() };
        let mut file = File { path: "x.rs".into(), text: text.to_owned(), ast, test: false, lines };
        file.count();
        file
    }

    #[test]
    fn lines_are_counted_by_kind_outside_tests() {
        let text = "//! Docs.\n\n/// Docs.\nfn f() {\n    // Reason.\n}\n#[cfg(test)]\nmod tests {\n}\n";
        let lines = file(text).lines;
        assert_eq!((lines.all, lines.product(), lines.tests), (9, 6, 3));
        assert_eq!((lines.docs, lines.comments, lines.code), (2, 1, 2));
    }

    #[test]
    fn attributes_of_tests() {
        let cases = [
            ("#[cfg(test)] fn f() {}", true),
            ("#[cfg(all(test, unix))] fn f() {}", true),
            ("#[cfg(all(test, not(miri)))] fn f() {}", true),
            ("#[test] fn f() {}", true),
            ("#[cfg(not(test))] fn f() {}", false),
            ("#[cfg(any(test, unix))] fn f() {}", false),
            ("#[cfg(feature = \"test\")] fn f() {}", false),
        ];
        for (text, expected) in cases {
            assert_eq!(is_test(attributes(&syn::parse_str(text).unwrap())), expected, "{text}");
        }
    }
}
