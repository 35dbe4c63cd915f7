//! Public types and traits of one name.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use quote::ToTokens;
use syn::{Attribute, Item, Visibility};

use super::names::{imports, type_name};
use super::resolve::Definition;
use super::source::{Workspace, attributes};

/// Names that every crate may have.
const USUAL: [&str; 2] = ["Error", "Result"];

/// Prints the names with more than one definition among the published crates' public items.
pub(super) fn print(workspace: &Workspace) {
    let mut names: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for definition in public(workspace) {
        let module = &workspace.modules[definition.module];
        let path: Vec<&str> = std::iter::once(workspace.crates[module.krate].name.as_str())
            .chain(module.path.iter().map(String::as_str))
            .collect();
        if let Some(name) = definition.name {
            names.entry(name).or_default().insert(path.join("::"));
        }
    }
    names.retain(|name, places| places.len() > 1 && !USUAL.contains(&name.as_str()));
    println!("\npublic names with two definitions ({} aside): {}", USUAL.join(" and "), names.len());
    for (name, places) in names {
        println!("  {name}: {}", places.into_iter().collect::<Vec<_>>().join(", "));
    }
}

/// The definitions of types and traits that users of the published libraries can name.
fn public(workspace: &Workspace) -> HashSet<Definition> {
    let mut found = HashSet::new();
    let mut open: Vec<usize> =
        workspace.crates.iter().filter(|krate| krate.product).filter_map(|krate| krate.library).collect();
    let mut seen: HashSet<usize> = open.iter().copied().collect();
    while let Some(index) = open.pop() {
        for item in &workspace.modules[index].items {
            if hidden(attributes(item)) {
                continue;
            }
            let paths = match item {
                Item::Mod(item) if is_public(&item.vis) => vec![vec!["self".into(), item.ident.to_string()]],
                Item::Use(item) if is_public(&item.vis) => {
                    imports(&item.tree).into_iter().map(|import| import.path).collect()
                }
                _ => match type_name(item) {
                    Some((name, vis)) if is_public(vis) => vec![vec!["self".into(), name]],
                    _ => continue,
                },
            };
            for place in paths.iter().flat_map(|path| workspace.resolve(index, path)) {
                if place.name.is_none() {
                    if seen.insert(place.module) {
                        open.push(place.module);
                    }
                } else if is_type(workspace, &place) {
                    found.insert(place);
                }
            }
        }
    }
    found
}

fn is_type(workspace: &Workspace, place: &Definition) -> bool {
    let items = &workspace.modules[place.module].items;
    items.iter().filter_map(type_name).any(|(name, vis)| Some(name) == place.name && is_public(vis))
}

fn is_public(vis: &Visibility) -> bool {
    matches!(vis, Visibility::Public(_))
}

fn hidden(attributes: &[Attribute]) -> bool {
    let doc = attributes.iter().filter(|attribute| attribute.path().is_ident("doc"));
    doc.into_iter().any(|attribute| attribute.meta.to_token_stream().to_string().contains("(hidden)"))
}
