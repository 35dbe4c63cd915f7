//! Circles between the modules or files of a crate.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{ImplItemFn, ItemMod, ItemUse, Macro, Path};

use super::names::imports;
use super::source::{Crate, Workspace, is_test};

/// Nodes of which each leads to each.
pub(super) struct Circle {
    pub(super) nodes: Vec<String>,
    /// `from -> to: names`.
    pub(super) edges: Vec<String>,
}

/// Names that lead from one node to another.
type Edges = BTreeMap<(String, String), BTreeSet<String>>;

/// The circles between files, or between the modules right below the crate root with all that is in them.
pub(super) fn circles(workspace: &Workspace, krate: &Crate, by_file: bool) -> Vec<Circle> {
    let mut edges = Edges::new();
    for (index, module) in workspace.modules.iter().enumerate() {
        if workspace.crates[module.krate].name != krate.name {
            continue;
        }
        let mut paths = Paths::default();
        module.items.iter().for_each(|item| paths.visit_item(item));
        let from = node(workspace, index, by_file);
        if by_file && let Some(parent) = module.parent {
            let parent = node(workspace, parent, true);
            edges.entry((parent, from.clone())).or_default().insert("mod".into());
        }
        for path in &paths.found {
            for place in workspace.resolve(index, path) {
                let target = &workspace.modules[place.module];
                let part_of = module.path.starts_with(&target.path) && module.krate == target.krate;
                if target.krate == module.krate && !part_of {
                    let to = node(workspace, place.module, by_file);
                    let name = place.name.unwrap_or_else(|| "mod".into());
                    edges.entry((from.clone(), to)).or_default().insert(name);
                }
            }
        }
    }
    edges.retain(|(from, to), _| from != to);
    components(&edges)
        .into_iter()
        .map(|nodes| {
            let inside = |name: &String| nodes.contains(name);
            let edges = edges.iter().filter(|((from, to), _)| inside(from) && inside(to));
            let line = |((from, to), names): (&(String, String), &BTreeSet<String>)| {
                format!("{from} -> {to}: {}", names.iter().cloned().collect::<Vec<_>>().join(", "))
            };
            Circle { edges: edges.map(line).collect(), nodes }
        })
        .collect()
}

fn node(workspace: &Workspace, module: usize, by_file: bool) -> String {
    let module = &workspace.modules[module];
    let krate = &workspace.crates[module.krate];
    if by_file {
        let path = &krate.files[module.file].path;
        let path = path.strip_prefix(krate.dir.join("src")).unwrap_or(path);
        path.display().to_string()
    } else {
        module.path.first().map_or_else(|| "(root)".to_owned(), String::clone)
    }
}

/// Strongly connected components of more than one node: nodes that reach each other.
fn components(edges: &Edges) -> Vec<Vec<String>> {
    let mut next: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (from, to) in edges.keys() {
        next.entry(from).or_default().insert(to);
    }
    let reached: BTreeMap<&str, BTreeSet<&str>> =
        next.keys().map(|node| (*node, reachable(node, &next))).collect();
    let mut components = BTreeSet::new();
    for (node, from) in &reached {
        let back = |other: &&str| reached.get(other).is_some_and(|set| set.contains(node));
        let component: Vec<String> = from.iter().copied().filter(back).map(str::to_owned).collect();
        if component.len() > 1 {
            components.insert(component);
        }
    }
    components.into_iter().collect()
}

/// The nodes that edges lead to from `start`.
fn reachable<'a>(start: &'a str, next: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> BTreeSet<&'a str> {
    let mut seen = BTreeSet::new();
    let mut open = vec![start];
    while let Some(node) = open.pop() {
        open.extend(next.get(node).into_iter().flatten().copied().filter(|to| seen.insert(*to)));
    }
    seen
}

/// Paths that code mentions.
#[derive(Default)]
struct Paths {
    found: BTreeSet<Vec<String>>,
}

impl<'ast> Visit<'ast> for Paths {
    // Modules of their own.
    fn visit_item_mod(&mut self, _: &'ast ItemMod) {}

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.found.extend(imports(&item.tree).into_iter().map(|import| import.path));
    }

    fn visit_impl_item_fn(&mut self, function: &'ast ImplItemFn) {
        if !is_test(&function.attrs) {
            visit::visit_impl_item_fn(self, function);
        }
    }

    fn visit_path(&mut self, path: &'ast Path) {
        self.found.insert(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, mac: &'ast Macro) {
        self.tokens(mac.tokens.clone());
    }
}

impl Paths {
    /// Names joined by `::` in what a macro is given.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut joined = false;
        for token in tokens {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == ':' => joined = true,
                TokenTree::Ident(ident) => {
                    if !joined {
                        self.found.insert(std::mem::take(&mut path));
                    }
                    path.push(ident.to_string());
                    joined = false;
                }
                other => {
                    self.found.insert(std::mem::take(&mut path));
                    joined = false;
                    if let TokenTree::Group(group) = other {
                        self.tokens(group.stream());
                    }
                }
            }
        }
        self.found.insert(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_are_the_largest_circles() {
        let edges: Edges =
            [("a", "b"), ("b", "a"), ("b", "c"), ("c", "d"), ("d", "e"), ("e", "c"), ("x", "a")]
                .map(|(from, to)| ((from.to_owned(), to.to_owned()), BTreeSet::new()))
                .into();
        assert_eq!(components(&edges), [vec!["a", "b"], vec!["c", "d", "e"]]);
    }

    #[test]
    fn paths_in_code_types_and_macros_are_found() {
        let code = "fn f(x: a::B) -> c::D<e::F> { g!(h::i(j), [k::L]); super::m() }";
        let mut paths = Paths::default();
        paths.visit_item(&syn::parse_str(code).unwrap());
        for path in ["a::B", "c::D", "e::F", "h::i", "j", "k::L", "super::m"] {
            let path: Vec<String> = path.split("::").map(str::to_owned).collect();
            assert!(paths.found.contains(&path), "{path:?}");
        }
    }
}
