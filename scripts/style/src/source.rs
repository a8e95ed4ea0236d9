//! One source file: parsed, its tests taken out, and measured.

use std::ops::RangeInclusive;
use std::path::Path;

use anyhow::{Context, Result, bail};
use proc_macro2::{LexError, TokenStream, TokenTree};
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::visit_mut::{self, VisitMut};
use syn::{
    Attribute, Block, File, ImplItem, ImplItemFn, Item, ItemFn, ItemImpl, ItemMod, ItemTrait, Meta,
    Signature, Stmt, Token, TraitItem, TraitItemFn,
};

/// What is known of a file when its tests are left out.
#[derive(Debug)]
pub struct Measures {
    /// Lines of any kind.
    pub all: usize,
    /// Lines that are neither blank nor comment alone.
    pub code: usize,
    /// Every function that is within no other, in order.
    pub functions: Vec<Function>,
}

/// A function, or a method.
#[derive(Debug)]
pub struct Function {
    pub name: String,
    /// The line of its `fn`, from 1 on.
    pub line: usize,
    /// From the line of its `fn` to that of its closing brace.
    pub lines: usize,
}

/// Reads a file. What is left of its syntax holds no tests, but for the
/// declarations of modules that are elsewhere: where those are is still to be
/// found out.
///
/// # Errors
///
/// The file cannot be read or is no Rust, or something that is neither an item
/// nor a member of one is there for tests only.
pub fn read(path: &Path) -> Result<(Measures, File)> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&text).with_context(|| format!("in {}", path.display()))
}

fn parse(text: &str) -> Result<(Measures, File)> {
    let tokens: TokenStream = text.parse().map_err(|error: LexError| {
        anyhow::anyhow!("line {}: {error}", error.span().start().line)
    })?;
    let mut file: File = syn::parse2(tokens.clone()).map_err(|error| {
        let line = error.span().start().line;
        anyhow::Error::new(error).context(format!("line {line} is not understood"))
    })?;
    let mut tests = Tests::default();
    tests.visit_file_mut(&mut file);
    let mut left = Left::default();
    left.visit_file(&file);
    if let Some(line) = left.test {
        bail!("line {line}: a condition on test is understood of items and their members alone");
    }
    let mut coded = vec![false; text.lines().count() + 1];
    mark(tokens, &mut coded);
    let (mut all, mut code) = (0, 0);
    for ((line, text), coded) in (1..).zip(text.lines()).zip(coded.into_iter().skip(1)) {
        if !tests.lines.iter().any(|lines| lines.contains(&line)) {
            all += 1;
            // Within a string there are blank lines, too.
            code += usize::from(coded && !text.trim().is_empty());
        }
    }
    let functions = left.functions;
    Ok((
        Measures {
            all,
            code,
            functions,
        },
        file,
    ))
}

/// Marks the lines that a token lies on. A comment is none, but one that is
/// documentation comes as an attribute in its place.
fn mark(tokens: TokenStream, coded: &mut [bool]) {
    let mut from_to = |from: usize, to: usize| {
        if let Some(lines) = coded.get_mut(from..=to) {
            lines.fill(true);
        }
    };
    let mut inner = Vec::new();
    let mut documentation = false;
    for tree in tokens {
        let from = tree.span().start();
        match tree {
            TokenTree::Punct(punct) if punct.as_char() == '#' => {
                // Of such an attribute each part is as long as the comment.
                let to = punct.span().end();
                documentation = from.line != to.line || from.column + 1 != to.column;
                if !documentation {
                    from_to(from.line, from.line);
                }
            }
            TokenTree::Punct(_) if documentation => {}
            TokenTree::Group(_) if documentation => documentation = false,
            TokenTree::Group(group) => {
                from_to(from.line, from.line);
                let to = group.span_close().end().line;
                from_to(to, to);
                inner.push(group.stream());
            }
            TokenTree::Literal(literal) => from_to(from.line, literal.span().end().line),
            TokenTree::Ident(_) | TokenTree::Punct(_) => from_to(from.line, from.line),
        }
    }
    for tokens in inner {
        mark(tokens, coded);
    }
}

/// Takes out what is there for tests only.
#[derive(Default)]
struct Tests {
    lines: Vec<RangeInclusive<usize>>,
}

impl Tests {
    fn take_out<T: Spanned>(&mut self, nodes: &mut Vec<T>, attributes: fn(&T) -> &[Attribute]) {
        nodes.retain(|node| self.keeps(node, attributes(node)));
    }

    fn items(&mut self, items: &mut Vec<Item>) {
        items.retain(|item| {
            let kept = self.keeps(item, of_item(item));
            kept || matches!(item, Item::Mod(ItemMod { content: None, .. }))
        });
    }

    fn keeps(&mut self, node: &impl Spanned, attributes: &[Attribute]) -> bool {
        let kept = !for_tests(attributes);
        if !kept {
            let span = node.span();
            self.lines.push(span.start().line..=span.end().line);
        }
        kept
    }
}

impl VisitMut for Tests {
    fn visit_file_mut(&mut self, file: &mut File) {
        self.items(&mut file.items);
        visit_mut::visit_file_mut(self, file);
    }

    fn visit_item_mod_mut(&mut self, module: &mut ItemMod) {
        if let Some((_, items)) = &mut module.content {
            self.items(items);
        }
        visit_mut::visit_item_mod_mut(self, module);
    }

    fn visit_block_mut(&mut self, block: &mut Block) {
        self.take_out(&mut block.stmts, |statement| match statement {
            Stmt::Item(item) => of_item(item),
            _ => &[],
        });
        visit_mut::visit_block_mut(self, block);
    }

    fn visit_item_impl_mut(&mut self, block: &mut ItemImpl) {
        self.take_out(&mut block.items, |item| match item {
            ImplItem::Const(item) => &item.attrs,
            ImplItem::Fn(item) => &item.attrs,
            ImplItem::Type(item) => &item.attrs,
            ImplItem::Macro(item) => &item.attrs,
            _ => &[],
        });
        visit_mut::visit_item_impl_mut(self, block);
    }

    fn visit_item_trait_mut(&mut self, block: &mut ItemTrait) {
        self.take_out(&mut block.items, |item| match item {
            TraitItem::Const(item) => &item.attrs,
            TraitItem::Fn(item) => &item.attrs,
            TraitItem::Type(item) => &item.attrs,
            TraitItem::Macro(item) => &item.attrs,
            _ => &[],
        });
        visit_mut::visit_item_trait_mut(self, block);
    }
}

fn of_item(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::ExternCrate(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::ForeignMod(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::TraitAlias(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// Whether what has these attributes is there for tests only.
pub fn for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("test")
            || attribute.path().is_ident("cfg")
                && attribute.parse_args().is_ok_and(|of| needs_test(&of))
    })
}

/// Whether a condition can hold in tests only.
fn needs_test(condition: &Meta) -> bool {
    let Meta::List(list) = condition else {
        return condition.path().is_ident("test");
    };
    let parts = list.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated);
    let parts = parts.unwrap_or_default();
    match list.path.get_ident() {
        Some(name) if name == "all" => parts.iter().any(needs_test),
        Some(name) if name == "any" => !parts.is_empty() && parts.iter().all(needs_test),
        _ => false,
    }
}

/// What is measured of the syntax that is left.
#[derive(Default)]
struct Left {
    functions: Vec<Function>,
    /// Where something is for tests all the same.
    test: Option<usize>,
}

impl Left {
    /// What is within a function counts as its own lines.
    fn function(&mut self, signature: &Signature, block: &Block, visit: impl FnOnce(&mut Self)) {
        let before = self.functions.len();
        visit(self);
        self.functions.truncate(before);
        let line = signature.fn_token.span.start().line;
        let end = block.brace_token.span.close().end().line;
        self.functions.push(Function {
            name: signature.ident.to_string(),
            line,
            lines: end.saturating_sub(line) + 1,
        });
    }
}

impl<'ast> Visit<'ast> for Left {
    fn visit_item_fn(&mut self, function: &'ast ItemFn) {
        self.function(&function.sig, &function.block, |this| {
            visit::visit_item_fn(this, function);
        });
    }

    fn visit_impl_item_fn(&mut self, function: &'ast ImplItemFn) {
        self.function(&function.sig, &function.block, |this| {
            visit::visit_impl_item_fn(this, function);
        });
    }

    fn visit_trait_item_fn(&mut self, function: &'ast TraitItemFn) {
        match &function.default {
            Some(block) => self.function(&function.sig, block, |this| {
                visit::visit_trait_item_fn(this, function);
            }),
            None => visit::visit_trait_item_fn(self, function),
        }
    }

    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        // One that is elsewhere has been left in.
        if module.content.is_some() {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        if for_tests(std::slice::from_ref(attribute)) {
            self.test.get_or_insert(attribute.span().start().line);
        }
    }
}
