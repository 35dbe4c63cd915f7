//! Functions, matches and docs of a crate.

use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Attribute, Block, ExprMatch, ImplItemFn, Item, ItemFn, Lit, Pat, Signature, TraitItemFn};

use super::place;
use super::source::{Crate, File, Line, attributes, is_test};

/// Counts and lists of a crate.
#[derive(Default)]
pub(super) struct Findings {
    pub(super) functions: Vec<Function>,
    /// Places of docs whose first word is "What", in tests as well.
    pub(super) what_docs: Vec<String>,
    /// Places of matches with a literal `true` or `false` as an arm, in tests as well.
    pub(super) bool_matches: Vec<String>,
}

/// A function outside tests.
pub(super) struct Function {
    pub(super) name: String,
    pub(super) place: String,
    /// From the line with `fn` to the closing brace.
    pub(super) lines: usize,
    /// Whether it is part of a kernel.
    pub(super) kernel: bool,
}

impl Findings {
    pub(super) fn of(krate: &Crate) -> Self {
        let mut this = Self::default();
        for file in &krate.files {
            this.docs(file);
            let mut visitor = Visitor { findings: &mut this, file, test: file.test };
            file.ast.items.iter().for_each(|item| visitor.visit_item(item));
        }
        this
    }

    fn docs(&mut self, file: &File) {
        let mut before = Line::Blank;
        for (line, text) in (1..).zip(file.text.lines()) {
            let kind = Line::of(text);
            let doc = matches!(kind, Line::Doc | Line::ModuleDoc);
            let words = text.trim_start().trim_start_matches(['/', '!']).split_whitespace();
            if doc && kind != before && words.take(1).any(|word| word == "What") {
                self.what_docs.push(place(&file.path, line));
            }
            before = kind;
        }
    }
}

struct Visitor<'a> {
    findings: &'a mut Findings,
    file: &'a File,
    test: bool,
}

impl Visitor<'_> {
    fn function(&mut self, attributes: &[Attribute], signature: &Signature, block: &Block) {
        if self.test || is_test(attributes) {
            return;
        }
        let (first, last) = (signature.span().start().line, block.span().end().line);
        self.findings.functions.push(Function {
            name: signature.ident.to_string(),
            place: place(&self.file.path, first),
            lines: last - first + 1,
            kernel: self.file.path.iter().any(|part| part == "kernels"),
        });
    }
}

impl<'ast> Visit<'ast> for Visitor<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        let outside = self.test;
        self.test |= is_test(attributes(item));
        visit::visit_item(self, item);
        self.test = outside;
    }

    fn visit_item_fn(&mut self, item: &'ast ItemFn) {
        self.function(&item.attrs, &item.sig, &item.block);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast ImplItemFn) {
        self.function(&item.attrs, &item.sig, &item.block);
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast TraitItemFn) {
        if let Some(block) = &item.default {
            self.function(&item.attrs, &item.sig, block);
        }
        visit::visit_trait_item_fn(self, item);
    }

    fn visit_expr_match(&mut self, expression: &'ast ExprMatch) {
        let literal =
            |pattern: &Pat| matches!(pattern, Pat::Lit(literal) if matches!(literal.lit, Lit::Bool(_)));
        if expression.arms.iter().any(|arm| literal(&arm.pat)) {
            self.findings.bool_matches.push(place(&self.file.path, expression.span().start().line));
        }
        visit::visit_expr_match(self, expression);
    }
}
