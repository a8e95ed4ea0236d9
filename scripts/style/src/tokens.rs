//! The paths that can be seen in the tokens of a macro or an attribute, which
//! are no syntax yet.

use proc_macro2::{Delimiter, Ident, TokenStream, TokenTree};
use syn::{LitStr, Path};

/// A path, and the line where it begins, from 1 on.
pub type Seen = (usize, Vec<String>);

/// Every path, of one name or of several; if `texts`, also one that a text
/// holds and nothing else.
pub fn paths(tokens: TokenStream, texts: bool) -> Vec<Seen> {
    let trees: Vec<TokenTree> = tokens.into_iter().collect();
    let mut found = Vec::new();
    let mut rest = trees.as_slice();
    loop {
        rest = match rest {
            [] => return found,
            // A range, behind which a path may begin.
            [a, b, behind @ ..] if is(a, '.') && is(b, '.') => behind,
            // A field or a method; the rest of a path that began with something
            // else, or that is of another crate; a macro's own name; a lifetime.
            [a, TokenTree::Ident(_), behind @ ..] if is(a, '.') || is(a, '\'') => behind,
            [a, b, TokenTree::Ident(_), behind @ ..] if is(a, ':') && is(b, ':') => behind,
            [a, TokenTree::Ident(name), behind @ ..] if is(a, '$') && name != "crate" => behind,
            [TokenTree::Ident(first), behind @ ..] => path(first, behind, &mut found),
            [TokenTree::Group(group), behind @ ..] => {
                found.extend(paths(group.stream(), texts));
                behind
            }
            [TokenTree::Literal(literal), behind @ ..] if texts => {
                let line = literal.span().start().line;
                found.extend(text(&literal.to_string()).map(|path| (line, path)));
                behind
            }
            [_, behind @ ..] => behind,
        };
    }
}

/// Takes a path, or those of a group of imports: what is behind.
fn path<'a>(first: &Ident, mut rest: &'a [TokenTree], found: &mut Vec<Seen>) -> &'a [TokenTree] {
    let line = first.span().start().line;
    let mut path = vec![plain(first)];
    while let [a, b, TokenTree::Ident(name), behind @ ..] = rest
        && is(a, ':')
        && is(b, ':')
    {
        path.push(plain(name));
        rest = behind;
    }
    if let [a, b, TokenTree::Group(group), behind @ ..] = rest
        && is(a, ':')
        && is(b, ':')
        && group.delimiter() == Delimiter::Brace
    {
        let each = paths(group.stream(), false).into_iter();
        found.extend(each.map(|(line, end)| (line, [path.clone(), end].concat())));
        return behind;
    }
    found.push((line, path));
    rest
}

/// The path that a text is. One of a single word is hardly ever meant as such.
fn text(literal: &str) -> Option<Vec<String>> {
    let path: Path = syn::parse_str::<LitStr>(literal).ok()?.parse().ok()?;
    let names: Vec<_> = path
        .segments
        .iter()
        .map(|part| plain(&part.ident))
        .collect();
    (path.leading_colon.is_none() && names.len() > 1).then_some(names)
}

fn is(tree: &TokenTree, character: char) -> bool {
    matches!(tree, TokenTree::Punct(punct) if punct.as_char() == character)
}

/// A name as it is compared.
pub fn plain(name: &Ident) -> String {
    let name = name.to_string();
    match name.strip_prefix("r#") {
        Some(plain) => plain.to_owned(),
        None => name,
    }
}
