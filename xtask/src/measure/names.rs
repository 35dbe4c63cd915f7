//! Names that a module declares and imports.

use std::collections::HashMap;

use syn::{Item, UseTree, Visibility};

/// The names of a module.
#[derive(Default)]
pub(super) struct Scope {
    pub(super) names: HashMap<String, Vec<Target>>,
    pub(super) globs: Vec<Vec<String>>,
    /// Library roots of the members.
    pub(super) external: HashMap<String, usize>,
}

/// Meaning of a name.
#[derive(Clone)]
pub(super) enum Target {
    Module(usize),
    Item,
    Import(Vec<String>),
}

/// A name in a `use`.
pub(super) struct Import {
    /// The name it gets; `None` for `*`.
    pub(super) name: Option<String>,
    pub(super) path: Vec<String>,
}

impl Scope {
    /// Enters what `items` declare, modules aside.
    pub(super) fn declare(&mut self, items: &[Item]) {
        for item in items {
            if let Item::Use(item) = item {
                self.import(&item.tree);
            }
            if let Some(name) = item_name(item) {
                self.names.entry(name).or_default().push(Target::Item);
            }
        }
    }

    /// Enters the names of a `use`.
    pub(super) fn import(&mut self, tree: &UseTree) {
        for import in imports(tree) {
            match import.name {
                Some(name) => self.names.entry(name).or_default().push(Target::Import(import.path)),
                None => self.globs.push(import.path),
            }
        }
    }

    pub(super) fn add_module(&mut self, name: String, module: usize) {
        self.names.entry(name).or_default().push(Target::Module(module));
    }
}

/// The name an item declares, unless it is a module or a `use`.
fn item_name(item: &Item) -> Option<String> {
    let ident = match item {
        Item::Const(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Static(item) => &item.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        _ => return type_name(item).map(|(name, _)| name),
    };
    Some(ident.to_string())
}

/// Name and visibility of a type or trait.
pub(super) fn type_name(item: &Item) -> Option<(String, &Visibility)> {
    let (ident, vis) = match item {
        Item::Enum(item) => (&item.ident, &item.vis),
        Item::Struct(item) => (&item.ident, &item.vis),
        Item::Trait(item) => (&item.ident, &item.vis),
        Item::Type(item) => (&item.ident, &item.vis),
        Item::Union(item) => (&item.ident, &item.vis),
        _ => return None,
    };
    Some((ident.to_string(), vis))
}

/// All names of a `use`.
pub(super) fn imports(tree: &UseTree) -> Vec<Import> {
    let mut found = Vec::new();
    walk(tree, &mut Vec::new(), &mut found);
    found
}

fn walk(tree: &UseTree, prefix: &mut Vec<String>, found: &mut Vec<Import>) {
    let path = |last: String, prefix: &[String]| {
        let last = (last != "self").then_some(last);
        prefix.iter().cloned().chain(last).collect::<Vec<_>>()
    };
    match tree {
        UseTree::Path(tree) => {
            prefix.push(tree.ident.to_string());
            walk(&tree.tree, prefix, found);
            prefix.pop();
        }
        UseTree::Name(tree) => {
            let path = path(tree.ident.to_string(), prefix);
            found.push(Import { name: path.last().cloned(), path });
        }
        UseTree::Rename(tree) => {
            let path = path(tree.ident.to_string(), prefix);
            found.push(Import { name: Some(tree.rename.to_string()), path });
        }
        UseTree::Glob(_) => found.push(Import { name: None, path: prefix.clone() }),
        UseTree::Group(tree) => tree.items.iter().for_each(|tree| walk(tree, prefix, found)),
    }
}
