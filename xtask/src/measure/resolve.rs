//! Definitions that paths lead to.

use super::names::Target;
use super::source::Workspace;

/// Steps from one `use` to the next that are followed.
const DEPTH: usize = 16;

/// Where a path leads.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Definition {
    pub(super) module: usize,
    /// `None` for the module itself.
    pub(super) name: Option<String>,
}

impl Workspace {
    /// The definitions that a path in `module` leads to; more than one if namespaces share the name.
    pub(super) fn resolve(&self, module: usize, path: &[String]) -> Vec<Definition> {
        self.resolve_within(module, path, DEPTH)
    }

    fn resolve_within(&self, module: usize, path: &[String], depth: usize) -> Vec<Definition> {
        let (Some((first, rest)), Some(depth)) = (path.split_first(), depth.checked_sub(1)) else {
            return Vec::new();
        };
        match first.as_str() {
            "crate" => self.follow(self.root(module), rest, depth),
            "self" => self.follow(module, rest, depth),
            "super" => match self.modules[module].parent {
                Some(parent) if rest.first().is_some_and(|next| next == "super") => {
                    self.resolve_within(parent, rest, depth)
                }
                Some(parent) => self.follow(parent, rest, depth),
                None => Vec::new(),
            },
            _ => {
                let found = self.follow(module, path, depth);
                match self.modules[module].scope.external.get(first) {
                    Some(root) if found.is_empty() => self.follow(*root, rest, depth),
                    _ => found,
                }
            }
        }
    }

    fn root(&self, mut module: usize) -> usize {
        while let Some(parent) = self.modules[module].parent {
            module = parent;
        }
        module
    }

    /// The definitions of a path that begins in `module`.
    fn follow(&self, module: usize, path: &[String], depth: usize) -> Vec<Definition> {
        let Some((name, rest)) = path.split_first() else {
            return vec![Definition { module, name: None }];
        };
        let scope = &self.modules[module].scope;
        let mut found = Vec::new();
        for target in scope.names.get(name).into_iter().flatten() {
            match target {
                Target::Module(child) => found.extend(self.follow(*child, rest, depth)),
                Target::Item => found.push(Definition { module, name: Some(name.clone()) }),
                Target::Import(import) => {
                    // `use candle::candle` or `use self::x as x` would lead back here.
                    let whole: Vec<String> = import.iter().chain(rest).cloned().collect();
                    if whole != path {
                        found.extend(self.resolve_within(module, &whole, depth));
                    }
                }
            }
        }
        if scope.names.contains_key(name) {
            return found;
        }
        for glob in &scope.globs {
            for place in self.resolve_within(module, glob, depth) {
                if place.name.is_none() && place.module != module && depth > 0 {
                    found.extend(self.follow(place.module, path, depth - 1));
                }
            }
        }
        found
    }
}
