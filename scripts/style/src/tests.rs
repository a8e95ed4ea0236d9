//! Small checkouts, and what is found in them.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use crate::circles::{self, Circle};
use crate::known::{self, Known};
use crate::tree::Tree;
use crate::{product, sizes};

/// A checkout with these files and no others.
fn checkout(files: &[(&str, &str)]) -> TempDir {
    let top = tempfile::tempdir().unwrap();
    for folder in ["vmm", "backends", "protocol"] {
        fs::create_dir(top.path().join(folder)).unwrap();
    }
    for (path, text) in files {
        let path = top.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    top
}

fn read(files: &[(&str, &str)]) -> Vec<Tree> {
    product::read(checkout(files).path()).unwrap()
}

fn refused(files: &[(&str, &str)]) -> String {
    format!("{:#}", product::read(checkout(files).path()).unwrap_err())
}

/// The crate in `vmm/src` whose files these are.
fn vmm(files: &[(&str, &str)]) -> Tree {
    let paths: Vec<_> = files
        .iter()
        .map(|(path, _)| format!("vmm/src/{path}"))
        .collect();
    let texts = files.iter().map(|(_, text)| *text);
    let files: Vec<_> = paths.iter().map(String::as_str).zip(texts).collect();
    let mut crates = read(&files);
    assert_eq!(crates.len(), 1);
    crates.remove(0)
}

/// The steps in a crate, each as `from to line path`.
fn steps(files: &[(&str, &str)]) -> Vec<String> {
    let named = |path: &Path| path.strip_prefix("vmm/src").unwrap().display().to_string();
    let steps = circles::steps(&vmm(files));
    let told = steps.values().map(|step| {
        format!(
            "{} {} {} {}",
            named(&step.from),
            named(&step.to),
            step.line,
            step.path
        )
    });
    told.collect()
}

/// The steps of `a.rs` beside `b.rs` and a folder with `c.rs`, which all have
/// an item `Item`.
fn of_a(text: &str) -> Vec<String> {
    steps(&[
        ("lib.rs", "mod a; mod b; mod d; pub struct Top;"),
        ("a.rs", text),
        (
            "b.rs",
            "pub struct Item; pub fn call() {} pub enum Kind { One }",
        ),
        ("d/mod.rs", "pub mod c; pub struct Item;"),
        ("d/c.rs", "pub struct Item;"),
    ])
}

const B: &str = "a.rs b.rs 1";
const C: &str = "a.rs d/c.rs 1";

#[test]
fn a_use_leads_to_the_file_of_each_of_its_leaves() {
    assert_eq!(of_a("use crate::b::Item;"), [format!("{B} crate::b::Item")]);
    assert_eq!(
        of_a("use super::b::Item as Other;"),
        [format!("{B} super::b::Item")]
    );
    assert_eq!(
        of_a("use self::super::b::Item as _;"),
        [format!("{B} self::super::b::Item")]
    );
    assert_eq!(
        of_a("use crate::{\n  b::Item,\n  d::{self, c::{Item as It}},\n};"),
        [
            "a.rs b.rs 2 crate::b::Item",
            "a.rs d/c.rs 3 crate::d::c::Item"
        ]
    );
    assert_eq!(
        of_a("use std::fs; use ::b::Item; use serde::b::Item;"),
        [""; 0]
    );
}

#[test]
fn a_module_counts_for_nothing_but_what_is_named_in_it_does() {
    assert_eq!(of_a("use crate::b; use super::d::{self, c};"), [""; 0]);
    assert_eq!(
        of_a("use crate::b;\nfn f() { b::call() }"),
        ["a.rs b.rs 2 b::call"]
    );
    assert_eq!(
        of_a("use crate::d::{self as other}; type T = other::c::Item;"),
        [format!("{C} other::c::Item")]
    );
    assert_eq!(
        of_a("use crate::d::{self};\ntype T = d::c::Item;"),
        ["a.rs d/c.rs 2 d::c::Item"]
    );
    assert_eq!(of_a("pub(in crate::b) struct S;"), [""; 0]);
}

#[test]
fn a_full_path_needs_no_use() {
    for text in [
        "fn f() { crate::b::call() }",
        "fn f(_: &[super::b::Item]) {}",
        "fn f<T: Into<crate::b::Item>>() {}",
        "impl crate::b::Item { fn f() {} }",
        "impl From<crate::b::Item> for u8 { fn from(_: crate::b::Item) -> u8 { 0 } }",
        "fn f(x: u8) { match x { crate::b::Kind::One => {} } }",
        "fn f() { use crate::b::Item; }",
        "const C: u8 = { crate::b::Item::LENGTH };",
        "#[derive(crate::b::Item)] struct S;",
        "struct S { #[serde(with = \"crate::b::Item\")] s: u8 }",
        "fn f() { log::warn!(\"{} {}\", 1, crate::b::call()) }",
        "fn f() { log::warn!(\"{}\", [x.y(super::b::call())]) }",
        "macro_rules! m { ($a:ident) => { $crate::b::call($a) }; }",
        "macro_rules! m { () => { use crate::{d, b::{Item}}; }; }",
        "fn f() { assert!((0..crate::b::LENGTH).len()) }",
        "fn f() { assert!(Vec::<crate::b::Item>::new()) }",
    ] {
        let found = of_a(text);
        assert!(
            found.len() == 1 && found[0].starts_with(B),
            "{text}: {found:?}"
        );
    }
}

#[test]
fn what_is_no_path_of_the_crate_is_no_step() {
    for text in [
        "fn f(b: B) { b.call(); b.d.c.Item }",
        "//! crate::b::Item\n/// [crate::b::Item]\nstruct S;",
        "use ::b::Item; fn f() { other::b::call(); ::b::call() }",
        "#[serde(with = \"::b::Item\", rename = \"Item\")] struct S;",
        "fn f() { log::warn!(\"crate::b::call\") }",
        "fn f() { log::warn!(\"\", x.call(), x.Item, Vec::<u8>::call(), ::b::call()) }",
        "macro_rules! m { ($call:ident, $l:lifetime) => { $call; 'Item }; }",
        "use crate::Top; fn f() { super::Top }",
        "fn Item() {} fn f() { Item(); self::Item() }",
    ] {
        // What would be taken for one would be found.
        assert_eq!(
            of_a(&format!("{text} use crate::b; use crate::b::*;")),
            [""; 0],
            "{text}"
        );
    }
}

#[test]
fn what_is_re_exported_counts_as_of_the_file_that_defines_it() {
    let exported = |exports: &str, text: &str| {
        steps(&[
            ("lib.rs", "mod a; mod d; mod e;"),
            ("a.rs", text),
            ("e.rs", "pub(crate) use super::d::*;"),
            ("d/mod.rs", &format!("mod c; {exports}")),
            (
                "d/c.rs",
                "pub struct Item; pub mod within { pub fn call() {} } pub enum Kind { One }",
            ),
        ])
    };
    for exports in [
        "pub use self::c::Item;",
        "pub(crate) use c::{Item};",
        "pub use c::*;",
        "pub use self::c::Item as Other; pub use Other as Item;",
        "pub use again::*; mod again { pub use super::c::Item; }",
    ] {
        assert_eq!(
            exported(exports, "use crate::d::Item;"),
            [format!("{C} crate::d::Item")],
            "{exports}"
        );
        assert_eq!(
            exported(exports, "fn f() { crate::e::Item }"),
            [format!("{C} crate::e::Item")],
            "{exports}"
        );
    }
    let within = exported("pub use c::within;", "use crate::d::within::call;");
    assert_eq!(within, [format!("{C} crate::d::within::call")]);
    assert_eq!(
        exported("pub use std::fs as x;", "fn f() { crate::d::x::read() }"),
        [""; 0]
    );
    let step = steps(&[
        ("lib.rs", "mod a; mod b; mod d;"),
        ("a.rs", "pub struct Item;"),
        ("b.rs", "pub use crate::a::Item;"),
        ("d.rs", "use crate::b::Item;"),
    ]);
    assert_eq!(
        step,
        ["b.rs a.rs 1 crate::a::Item", "d.rs a.rs 1 crate::b::Item"]
    );
}

#[test]
fn names_behind_a_star_are_looked_for_but_the_own_ones_come_first() {
    assert_eq!(of_a("use crate::b::*;"), [""; 0]);
    assert_eq!(
        of_a("use crate::b::*;\nfn f() { call() }"),
        ["a.rs b.rs 2 call"]
    );
    assert_eq!(
        of_a("use crate::b::*;\nfn f() { print!(\"{}\", call()) }"),
        ["a.rs b.rs 2 call"]
    );
    assert_eq!(
        of_a("use crate::b::*; struct Item; type T = Item;"),
        [""; 0]
    );
    assert_eq!(
        of_a("use crate::b::Kind::*;"),
        [format!("{B} crate::b::Kind")]
    );
}

#[test]
fn imports_that_lead_to_themselves_come_to_an_end() {
    let found = steps(&[
        ("lib.rs", "mod a; mod b; mod c; pub use a::a;"),
        (
            "a.rs",
            "pub use crate::b::*; pub use crate::c::x; pub fn a() {}",
        ),
        (
            "b.rs",
            "pub use crate::a::*; fn f() { nothing(); crate::a(); }",
        ),
        ("c.rs", "pub use crate::a::x;"),
    ]);
    assert_eq!(found, ["b.rs a.rs 1 crate::a"]);
}

#[test]
fn an_item_that_a_macro_makes_is_of_the_file_that_calls_it() {
    let found = steps(&[
        ("lib.rs", "#[macro_use] mod a; mod b; mod c;"),
        (
            "a.rs",
            "#[macro_export] macro_rules! make { () => { pub struct Made; } }",
        ),
        ("b.rs", "make!();"),
        (
            "c.rs",
            "use crate::b::Made;\ncrate::make!();\nfn f(make: u8) { make }",
        ),
    ]);
    assert_eq!(
        found,
        [
            "b.rs a.rs 1 make!",
            "c.rs a.rs 2 crate::make",
            "c.rs b.rs 1 crate::b::Made"
        ]
    );
}

#[test]
fn modules_are_found_in_either_layout_and_within_files() {
    let item = "pub struct Item;";
    let tree = vmm(&[
        (
            "main.rs",
            "mod a; mod b; mod within { mod c; pub mod d { use super::super::a::Item; } }",
        ),
        (
            "a.rs",
            "mod inner; pub struct Item; #[path = \"a_too.rs\"] mod other;",
        ),
        ("a_too.rs", ""),
        ("a/inner.rs", item),
        (
            "b/mod.rs",
            "mod inner; mod r#type; #[path = \"else/where.rs\"] mod other; mod m { #[path = \"x.rs\"] mod y; }",
        ),
        ("b/inner.rs", item),
        ("b/type.rs", item),
        ("b/else/where.rs", "mod beside;"),
        ("b/else/beside.rs", item),
        ("b/m/x.rs", item),
        (
            "within/c.rs",
            "use crate::b::Item; use super::d::Item as It;",
        ),
    ]);
    let files: Vec<_> = product::files(std::slice::from_ref(&tree))
        .iter()
        .map(|file| {
            file.path
                .strip_prefix("vmm/src")
                .unwrap()
                .display()
                .to_string()
        })
        .collect();
    assert_eq!(
        files,
        [
            "a/inner.rs",
            "a.rs",
            "a_too.rs",
            "b/else/beside.rs",
            "b/else/where.rs",
            "b/inner.rs",
            "b/m/x.rs",
            "b/mod.rs",
            "b/type.rs",
            "main.rs",
            "within/c.rs",
        ]
    );
    let steps = circles::steps(&tree);
    let to: Vec<_> = steps
        .values()
        .map(|step| (&*step.path, step.to.to_str().unwrap()))
        .collect();
    // Nothing to what the file that declares it defines, or to what that names.
    assert_eq!(
        to,
        [
            ("super::d::Item", "vmm/src/a.rs"),
            ("crate::b::Item", "vmm/src/b/mod.rs")
        ]
    );
}

#[test]
fn a_file_that_is_not_there_or_that_nobody_names_is_an_error() {
    let error = refused(&[("vmm/src/lib.rs", "mod a;")]);
    assert!(error.contains("there is no file for `mod a;`"), "{error}");
    let error = refused(&[("vmm/src/lib.rs", ""), ("vmm/src/a/b.rs", "")]);
    assert!(error.starts_with("vmm/src/a/b.rs: no module"), "{error}");
    let error = refused(&[("vmm/src/lib.rs", "mod a;"), ("vmm/src/a.rs", "\nfn {}")]);
    assert!(
        error.contains("vmm/src/a.rs: line 2 is not understood"),
        "{error}"
    );
    let error = refused(&[("vmm/src/lib.rs", "\n\nfn f() { #[cfg(test)] let x = 1; }")]);
    assert!(error.contains("line 3: a condition on test"), "{error}");
    let error = product::read(Path::new("/proc/self/fd"))
        .unwrap_err()
        .to_string();
    assert!(error.ends_with("is that a checkout?"), "{error}");
}

/// What is told of circles, with the list of known ones.
fn told(circles: &[Circle], known: &[Known]) -> (Vec<String>, Vec<String>) {
    let outcome = known::check(circles, known);
    (outcome.told, outcome.wrong)
}

fn circles_of(files: &[(&str, &str)]) -> Vec<Circle> {
    circles::of(&vmm(files))
}

#[test]
fn a_circle_is_told_with_a_line_for_each_of_its_steps() {
    let circles = circles_of(&[
        ("lib.rs", "mod a; mod b; mod c; mod d;"),
        ("a.rs", "\nuse crate::b::X;\nuse crate::b::Y;"),
        ("b.rs", "pub struct X; pub fn f() { super::c::g() }"),
        ("c.rs", "pub fn g() { crate::a::h() } use crate::d::Z;"),
        ("d.rs", "pub struct Z;"),
    ]);
    let (told, wrong) = told(&circles, &[]);
    assert_eq!(told, [""; 0]);
    assert_eq!(
        wrong,
        ["circle of 3 files:\n  \
            vmm/src/a.rs -> vmm/src/b.rs (line 2: crate::b::X)\n  \
            vmm/src/b.rs -> vmm/src/c.rs (line 1: super::c::g)\n  \
            vmm/src/c.rs -> vmm/src/a.rs (line 1: crate::a::h)"]
    );
}

#[test]
fn two_circles_are_told_apart() {
    let files = [
        ("lib.rs", "mod a; mod b; mod c; mod d;"),
        ("a.rs", "use crate::b::B; pub struct A;"),
        ("b.rs", "use crate::a::A; use crate::c::C; pub struct B;"),
        ("c.rs", "use crate::d::D; pub struct C;"),
        ("d.rs", "use crate::c::C; pub struct D;"),
    ];
    let sizes: Vec<_> = circles_of(&files)
        .iter()
        .map(|circle| circle.files.len())
        .collect();
    assert_eq!(sizes, [2, 2]);
}

#[test]
fn a_file_and_one_that_it_declares_make_no_circle_but_a_module_of_that_does() {
    let files = |inner| {
        [
            ("lib.rs", "mod a; pub struct Top;"),
            (
                "a.rs",
                "mod b; pub use b::c::Item; pub struct X; use crate::Top;",
            ),
            ("a/b.rs", "pub mod c; use super::X;"),
            ("a/b/c.rs", inner),
        ]
    };
    assert_eq!(circles_of(&files("pub struct Item;")).len(), 0);
    let circles = circles_of(&files("pub struct Item; use crate::a::X;"));
    assert_eq!(circles.len(), 1);
    assert_eq!(circles[0].files.len(), 2);
}

#[test]
fn a_known_circle_is_told_and_must_be_there_as_it_is_listed() {
    let circles = circles_of(&[
        ("lib.rs", "mod a; mod b; mod c;"),
        ("a.rs", "use crate::b::B; pub struct A;"),
        ("b.rs", "use crate::c::C; pub struct B;"),
        ("c.rs", "use crate::a::A; pub struct C;"),
    ]);
    let known = |files| {
        [Known {
            source: "vmm/src",
            files,
        }]
    };
    let (lines, wrong) = told(&circles, &known(&["c.rs", "a.rs", "b.rs"]));
    assert!(wrong.is_empty(), "{wrong:?}");
    assert!(
        lines[0].starts_with("known circle of 3 files:\n"),
        "{lines:?}"
    );
    // It has got larger, or smaller.
    for files in [&["a.rs", "b.rs"][..], &["a.rs", "b.rs", "c.rs", "d.rs"]] {
        let (lines, wrong) = told(&circles, &known(files));
        assert!(lines.is_empty());
        assert!(wrong[0].starts_with("circle of 3 files:\n"), "{wrong:?}");
        assert!(wrong[1].contains(&files.join(", ")), "{wrong:?}");
    }
    // It has been opened, or is in another crate.
    assert_eq!(told(&[], &known(&["a.rs", "b.rs", "c.rs"])).1.len(), 1);
    let elsewhere = [Known {
        source: "backends/blk/src",
        files: &["a.rs", "b.rs", "c.rs"],
    }];
    assert_eq!(told(&circles, &elsewhere).1.len(), 2);
}

#[test]
fn what_is_for_tests_is_neither_read_nor_counted() {
    let crates = read(&[
        (
            "vmm/src/lib.rs",
            "mod a;\n\
             #[cfg(test)]\n\
             mod tests;\n\
             /// Documented.\n\
             #[cfg(test)]\n\
             #[allow(unused)]\n\
             pub mod fake;\n",
        ),
        ("vmm/src/tests.rs", "mod more; use crate::a::Item;"),
        ("vmm/src/tests/more.rs", "not Rust at all"),
        ("vmm/src/fake.rs", "not Rust at all"),
        ("vmm/src/fake/inner.rs", "not Rust at all"),
        ("vmm/src/a/inner/tests/one.rs", "not Rust at all"),
        (
            "vmm/src/a.rs",
            "pub struct Item;\n\
             impl Item {\n\
             #[cfg(all(test, unix))]\n\
             fn within() {\n\
             }\n\
             #[cfg(not(test))]\n\
             fn product() {}\n\
             }\n\
             #[cfg(any(test, debug_assertions))]\n\
             fn either() {}\n\
             #[cfg(any(test, all(unix, test)))]\n\
             use nothing::of_it;\n\
             trait T {\n\
             #[cfg(test)]\n\
             fn f();\n\
             }\n\
             fn f() {\n\
             #[cfg(test)]\n\
             use nothing::of_it;\n\
             }\n\
             #[test]\n\
             fn a_test() {}\n\
             mod inner {\n\
             #[cfg(test)]\n\
             mod tests {\n\
             mod one;\n\
             }\n\
             }\n",
        ),
    ]);
    let files = product::files(&crates);
    let lines: Vec<_> = files
        .iter()
        .map(|file| (file.path.to_str().unwrap(), file.measures.all))
        .collect();
    assert_eq!(lines, [("vmm/src/a.rs", 13), ("vmm/src/lib.rs", 1)]);
    let names: Vec<_> = files[0]
        .measures
        .functions
        .iter()
        .map(|f| &*f.name)
        .collect();
    assert_eq!(names, ["product", "either", "f"]);
}

#[test]
fn a_line_of_code_is_neither_blank_nor_comment_alone() {
    let crates = read(&[
        (
            "vmm/src/lib.rs",
            "//! Documentation.\n\
             \n\
             // A comment.\n\
             /// Documentation.\n\
             /** More of it,\n\
             over two lines. */\n\
             #[doc = \"this is code\"]\n\
             pub fn f() { // with a comment\n\
             /* A comment,\n\
             over two lines. */\n\
             //! Documentation.\n\
             let text = \"two lines\n\
             // of text\n\
             \n\
             and one more\"; /* a comment */\n\
             }\n",
        ),
        ("vmm/src/main.rs", "fn main() {}\n"),
        ("backends/blk/src/lib.rs", "mod a;\n"),
        ("backends/blk/src/a.rs", "\n"),
        ("backends/net/src/lib.rs", "fn f() {\n}\n"),
        ("protocol/src/lib.rs", "// None.\n"),
        ("protocol/log/src/lib.rs", "struct S;"),
        ("protocol/tests/other.rs", "fn f() {}"),
        ("vmm/build.rs", "fn main() {}"),
    ]);
    let files = product::files(&crates);
    let outcome = sizes::count(&files, 11);
    assert!(outcome.wrong.is_empty());
    assert_eq!(outcome.told.len(), 2);
    let [all, code] = [
        "23 (backends 4, protocol 2, vmm 17)",
        "11 (backends 3, protocol 1, vmm 7)",
    ];
    assert!(
        outcome.told[0].starts_with("all lines of 7 files") && outcome.told[0].ends_with(all),
        "{outcome:?}"
    );
    assert!(
        outcome.told[1].starts_with("lines of code") && outcome.told[1].ends_with(code),
        "{outcome:?}"
    );
    assert_eq!(
        sizes::count(&files, 10).wrong,
        ["11 lines of code, more than 10"]
    );
}

#[test]
fn a_function_is_measured_from_its_fn_to_its_brace_with_what_is_within() {
    let crates = read(&[(
        "vmm/src/lib.rs",
        "/// Documentation.\n\
         #[inline]\n\
         pub fn outer(\n\
         ) {\n\
         fn inner() {\n\
         }\n\
         let closure = || {\n\
         };\n\
         }\n\
         impl S { fn method() {}\n\
         pub\n\
         fn other() {\n\
         } }\n\
         trait T { fn none(); fn default() {\n\
         \n\
         } }\n",
    )]);
    let functions = &product::files(&crates)[0].measures.functions;
    let told: Vec<_> = functions
        .iter()
        .map(|f| (&*f.name, f.line, f.lines))
        .collect();
    assert_eq!(
        told,
        [
            ("outer", 3, 7),
            ("method", 10, 1),
            ("other", 12, 2),
            ("default", 14, 3)
        ]
    );
}

#[test]
fn a_file_of_401_lines_and_a_function_of_61_are_too_large() {
    let function = |lines: usize| format!("fn f() {{\n{}}}\n", "\n".repeat(lines - 2));
    let wrong = |text: &str| {
        let crates = read(&[("vmm/src/lib.rs", text)]);
        sizes::check(&product::files(&crates)).wrong
    };
    let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", function(500));
    assert_eq!(wrong(&format!("{}{tests}", function(60))), [""; 0]);
    let told = ["vmm/src/lib.rs line 2: fn f has 61 lines, more than 60"];
    assert_eq!(wrong(&format!("\n{}", function(61))), told);
    assert_eq!(wrong(&format!("{}{tests}", "\n".repeat(400))), [""; 0]);
    let told = ["vmm/src/lib.rs: 401 lines without tests, more than 400"];
    assert_eq!(wrong(&format!("{}{tests}", "\n".repeat(401))), told);
}
