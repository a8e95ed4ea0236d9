//! The modules of one crate, from its first file on: what each defines or
//! imports, and what it names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use syn::visit::{self, Visit};
use syn::{Attribute, Expr, Item, ItemMod, ItemUse, Lit, Macro, Meta, UseTree};

use crate::source::{self, Measures};
use crate::tokens::{self, plain};

/// A crate without its tests.
#[derive(Debug, Default)]
pub struct Tree {
    pub files: Vec<File>,
    /// The first one is the crate itself.
    pub modules: Vec<Module>,
    pub mentions: Vec<Mention>,
    /// The file of each macro that is made by `macro_rules!`, by `name!`.
    pub macros: BTreeMap<String, usize>,
    /// Files of modules that are there for tests only.
    pub tests: Vec<PathBuf>,
}

/// A file of the product.
#[derive(Debug)]
pub struct File {
    pub path: PathBuf,
    /// The file that says `mod` of it; the first one has none.
    pub parent: Option<usize>,
    pub measures: Measures,
}

/// A module, in a file of its own or within one.
#[derive(Debug)]
pub struct Module {
    pub file: usize,
    pub parent: Option<usize>,
    /// What is behind a name: up to one for types, for values and for macros.
    pub names: BTreeMap<String, Vec<Bound>>,
    /// The paths of its imports with a star.
    pub stars: Vec<Vec<String>>,
}

/// What a name is bound to.
#[derive(Debug)]
pub enum Bound {
    /// An item of the module's own.
    Item,
    /// A module, by its number.
    Module(usize),
    /// What another path leads to.
    Import(Vec<String>),
}

/// A place where a file names something.
#[derive(Debug)]
pub struct Mention {
    pub module: usize,
    /// From 1 on.
    pub line: usize,
    pub path: Vec<String>,
}

/// Reads a crate from its `lib.rs` or `main.rs` on. This path, and every one
/// that is told, is within the folder `top`.
///
/// # Errors
///
/// A file cannot be read, is not understood, or is not where `mod` says.
pub fn read(top: &Path, first: &Path) -> Result<Tree> {
    let mut reader = Reader {
        top,
        tree: Tree::default(),
        module: 0,
        folder: first.parent().unwrap_or(Path::new("")).to_owned(),
        error: None,
    };
    reader.file(first.to_owned(), None)?;
    Ok(reader.tree)
}

struct Reader<'a> {
    top: &'a Path,
    tree: Tree,
    /// The module that is being read.
    module: usize,
    /// Where the files of its modules are.
    folder: PathBuf,
    error: Option<anyhow::Error>,
}

impl Reader<'_> {
    /// Reads a file as a module: its number.
    fn file(&mut self, path: PathBuf, parent: Option<usize>) -> Result<usize> {
        let (measures, syntax) = source::read(&self.top.join(&path))?;
        let file = self.tree.files.len();
        self.tree.files.push(File {
            path,
            parent: parent.map(|parent| self.tree.modules[parent].file),
            measures,
        });
        let folder = self.folder.clone();
        let module = self.within(file, parent, folder, |reader| reader.visit_file(&syntax));
        self.error.take().map_or(Ok(module), Err)
    }

    /// Reads a new module, the files of whose own modules are in a folder.
    fn within(
        &mut self,
        file: usize,
        parent: Option<usize>,
        folder: PathBuf,
        read: impl FnOnce(&mut Self),
    ) -> usize {
        let module = self.tree.modules.len();
        self.tree.modules.push(Module {
            file,
            parent,
            names: BTreeMap::new(),
            stars: Vec::new(),
        });
        let outer = std::mem::replace(&mut self.module, module);
        let outer_folder = std::mem::replace(&mut self.folder, folder);
        read(self);
        self.module = outer;
        self.folder = outer_folder;
        module
    }

    /// Reads a module that is elsewhere: its number, unless it is for tests.
    fn elsewhere(&mut self, module: &ItemMod) -> Result<Option<usize>> {
        let name = plain(&module.ident);
        let outer = self.folder.clone();
        let (path, folder) = self.place(&name, &module.attrs)?;
        if source::for_tests(&module.attrs) {
            self.tree.tests.push(path);
            return Ok(None);
        }
        self.folder = folder;
        let read = self.file(path, Some(self.module));
        self.folder = outer;
        read.map(Some)
    }

    /// Where the file of a module is, and where those of its own modules are.
    fn place(&self, name: &str, attributes: &[Attribute]) -> Result<(PathBuf, PathBuf)> {
        if let Some(path) = attributes.iter().find_map(given_path) {
            // Of a module within a file, its own folder; else that of the file.
            let module = &self.tree.modules[self.module];
            let file = &self.tree.files[module.file];
            let in_file = module
                .parent
                .is_none_or(|parent| self.tree.modules[parent].file != module.file);
            let base = match in_file {
                true => file.path.parent().unwrap_or(Path::new("")),
                false => &self.folder,
            };
            let path = base.join(path);
            let folder = path.parent().unwrap_or(Path::new("")).to_owned();
            return Ok((path, folder));
        }
        let folder = self.folder.join(name);
        [
            self.folder.join(format!("{name}.rs")),
            folder.join("mod.rs"),
        ]
        .into_iter()
        .find(|path| self.top.join(path).is_file())
        .map(|path| (path, folder))
        .with_context(|| format!("there is no file for `mod {name};`"))
    }

    fn bind(&mut self, name: String, bound: Bound) {
        let names = &mut self.tree.modules[self.module].names;
        names.entry(name).or_default().push(bound);
    }

    fn mention(&mut self, line: usize, path: Vec<String>) {
        let module = self.module;
        self.tree.mentions.push(Mention { module, line, path });
    }

    /// Takes in what a `use` says; `path` is what precedes the tree.
    fn import(&mut self, path: &[String], tree: &UseTree) {
        let with = |name: &syn::Ident| {
            let mut path = path.to_vec();
            // `self` is the module itself, unless it comes first.
            if name != "self" || path.is_empty() {
                path.push(plain(name));
            }
            path
        };
        match tree {
            UseTree::Path(part) => self.import(&with(&part.ident), &part.tree),
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.import(path, tree);
                }
            }
            UseTree::Name(leaf) => {
                let path = with(&leaf.ident);
                let name = path.last().cloned().unwrap_or_default();
                self.imported(&leaf.ident, name, path);
            }
            UseTree::Rename(leaf) => {
                self.imported(&leaf.ident, plain(&leaf.rename), with(&leaf.ident));
            }
            UseTree::Glob(star) => {
                let line = star.star_token.spans[0].start().line;
                self.tree.modules[self.module].stars.push(path.to_vec());
                self.mention(line, path.to_vec());
            }
        }
    }

    fn imported(&mut self, leaf: &syn::Ident, name: String, path: Vec<String>) {
        self.mention(leaf.span().start().line, path.clone());
        self.bind(name, Bound::Import(path));
    }

    fn tokens(&mut self, tokens: proc_macro2::TokenStream, texts: bool) {
        for (line, path) in tokens::paths(tokens, texts) {
            self.mention(line, path);
        }
    }
}

// An item or an import within a function is taken for one of its module: what
// it hides there is then looked for in two places.
impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        let name = match item {
            Item::Const(item) => Some(&item.ident),
            Item::Enum(item) => Some(&item.ident),
            Item::Fn(item) => Some(&item.sig.ident),
            Item::Macro(item) => item.ident.as_ref(),
            Item::Static(item) => Some(&item.ident),
            Item::Struct(item) => Some(&item.ident),
            Item::Trait(item) => Some(&item.ident),
            Item::TraitAlias(item) => Some(&item.ident),
            Item::Type(item) => Some(&item.ident),
            Item::Union(item) => Some(&item.ident),
            _ => None,
        };
        if let Some(name) = name.map(plain) {
            if matches!(item, Item::Macro(_)) {
                let file = self.tree.modules[self.module].file;
                self.tree.macros.insert(format!("{name}!"), file);
            }
            self.bind(name, Bound::Item);
        }
        visit::visit_item(self, item);
    }

    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        let name = plain(&module.ident);
        let number = if module.content.is_some() {
            let file = self.tree.modules[self.module].file;
            let folder = self.folder.join(&name);
            Ok(Some(self.within(
                file,
                Some(self.module),
                folder,
                |reader| {
                    visit::visit_item_mod(reader, module);
                },
            )))
        } else {
            self.elsewhere(module)
        };
        match number {
            Ok(Some(number)) => self.bind(name, Bound::Module(number)),
            Ok(None) => {}
            Err(error) => {
                self.error.get_or_insert(error);
            }
        }
    }

    fn visit_item_use(&mut self, import: &'ast ItemUse) {
        // With `::` in front it is of another crate.
        if import.leading_colon.is_none() {
            self.import(&[], &import.tree);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if let (None, Some(first)) = (&path.leading_colon, path.segments.first()) {
            let names = path.segments.iter().map(|part| plain(&part.ident));
            self.mention(first.ident.span().start().line, names.collect());
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        if let Some(name) = call.path.get_ident() {
            let call = format!("{}!", plain(name));
            self.mention(name.span().start().line, vec![call]);
        }
        self.tokens(call.tokens.clone(), false);
        visit::visit_macro(self, call);
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        // What `#[serde(with = "path")]` names is a text.
        if let Meta::List(list) = &attribute.meta {
            self.tokens(list.tokens.clone(), true);
        }
    }
}

/// The file of `#[path = "file"]`.
fn given_path(attribute: &Attribute) -> Option<String> {
    if let Meta::NameValue(given) = &attribute.meta
        && given.path.is_ident("path")
        && let Expr::Lit(literal) = &given.value
        && let Lit::Str(text) = &literal.lit
    {
        return Some(text.value());
    }
    None
}
