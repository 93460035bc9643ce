//! The direction of imports, and what the deterministic core must not name.
//!
//! `LAYERS` is the table; a folder of `src` that is not in it fails, and so does a line of the
//! table that no folder has. The same is said to clippy in `clippy.toml` for the core.

mod source;

use std::path::{Path, PathBuf};

/// Each layer and the layers it may import from, besides itself.
const LAYERS: &[(&str, &[&str])] = &[
    ("wire", &[]),
    ("protocol", &["wire"]),
    ("engine", &["wire", "protocol"]),
    ("sync", &["engine"]),
    ("io", &["wire", "engine"]),
    ("sim", &["wire", "engine", "io"]),
    ("observe", &["wire", "engine"]),
    ("replay", &["wire", "protocol", "engine", "io"]),
    ("config", &["wire", "engine", "observe"]),
    ("evidence", &["wire", "engine", "io", "observe", "config", "replay"]),
    ("lab", &["wire", "engine", "io"]),
    ("admin", &["config", "engine", "observe", "io"]),
];

/// Layers that may import everything.
const DOORS: &[&str] = &["cli", "lib", "main"];

/// The deterministic core.
const CORE: &[&str] = &["wire", "protocol", "engine"];

/// What would let a clock, a socket, a thread, the environment or hash order into the core.
const FORBIDDEN_IN_CORE: &[&str] = &[
    "tokio",
    "tracing",
    "libc",
    "nix",
    "serde",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "std::net::ToSocketAddrs",
    "Instant::now",
    "std::time::Instant",
    "SystemTime",
    "UNIX_EPOCH",
    "std::env",
    "std::thread",
    "thread_local!",
    "std::fs",
    "std::io",
    "std::process",
    "std::sync::Mutex",
    "HashMap",
    "HashSet",
    "RandomState",
    "println!",
    "eprintln!",
];

#[test]
fn layers_import_downwards_only() {
    let mut wrong = Vec::new();
    for (layer, file) in layered_files() {
        let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == layer) else {
            if !DOORS.contains(&layer.as_str()) {
                wrong.push(format!("{}: layer `{layer}` is in no table", source::shown(&file)));
            }
            continue;
        };
        let code = source::code(&source::text(&file).expect("Rust files are UTF-8"));
        for (line, target) in imports(&code, depth(&file)) {
            let is_layer =
                LAYERS.iter().any(|(name, _)| *name == target) || DOORS.contains(&target.as_str());
            if is_layer && target != layer && !allowed.contains(&target.as_str()) {
                wrong.push(format!(
                    "{}:{line}: `{layer}` may not import `{target}`",
                    source::shown(&file)
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn every_layer_of_the_table_is_there() {
    let there: Vec<String> = layered_files().into_iter().map(|(layer, _)| layer).collect();
    for (layer, _) in LAYERS {
        assert!(there.iter().any(|name| name == layer), "src/{layer} is in the table only");
    }
}

#[test]
fn the_core_names_no_clock_socket_thread_environment_or_hash_order() {
    let mut wrong = Vec::new();
    for (layer, file) in layered_files() {
        if !CORE.contains(&layer.as_str()) {
            continue;
        }
        let code = source::code(&source::text(&file).expect("Rust files are UTF-8"));
        for (index, line) in code.lines().enumerate() {
            for name in FORBIDDEN_IN_CORE {
                if source::has_word(line, name) {
                    wrong.push(format!("{}:{}: {name}", source::shown(&file), index + 1));
                }
            }
        }
        for (line, name) in std_groups(&code) {
            if FORBIDDEN_IN_CORE.contains(&name.as_str()) {
                wrong.push(format!("{}:{line}: {name}", source::shown(&file)));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn the_scan_finds_what_it_looks_for() {
    let code = source::code(
        "use crate::engine::X;\nuse crate::{\n    wire::Y, io::{A, admin}, lab,\n};\n\
         // use crate::cli;\nlet s = \"crate::sim\"; super::super::observe::f();\n",
    );
    let found: Vec<String> = imports(&code, 2).into_iter().map(|(_, name)| name).collect();
    assert_eq!(found, ["engine", "wire", "io", "lab", "observe"]);
    assert_eq!(imports("super::super::io::f()", 3), []);
    let groups = std_groups("use std::{fmt, thread, time::{Duration, Instant}};");
    let names: Vec<&str> = groups.iter().map(|(_, name)| name.as_str()).collect();
    assert!(names.contains(&"std::thread") && names.contains(&"std::time::Instant"));
}

/// Every file of `src` with the layer it belongs to.
fn layered_files() -> Vec<(String, PathBuf)> {
    let src = source::root().join("src");
    source::rust_files(&src)
        .into_iter()
        .map(|file| {
            let inside = file.strip_prefix(&src).expect("found below src").with_extension("");
            let first = inside.components().next().expect("a file has a name");
            (first.as_os_str().to_string_lossy().into_owned(), file)
        })
        .collect()
}

/// How many modules deep a file of `src` is: 1 for src/wire/mod.rs, 2 for src/wire/seq.rs.
fn depth(file: &Path) -> usize {
    let inside = file.strip_prefix(source::root().join("src")).expect("found below src");
    let is_mod = inside.file_name().is_some_and(|name| name == "mod.rs");
    inside.components().count() - usize::from(is_mod)
}

/// Every first name behind `crate::` or behind enough `super::` to reach the root, with its line.
fn imports(code: &str, depth: usize) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (root, least) in [("crate::".to_owned(), 0), ("super::".repeat(depth), 1)] {
        if depth == 0 && least == 1 {
            continue;
        }
        for (at, _) in code.match_indices(&root) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            let line = code[..at].matches('\n').count() + 1;
            for name in first_names(&code[at + root.len()..]) {
                found.push((line, name));
            }
        }
    }
    found
}

/// The names that a path may begin with: one, or the first of each in a `{...}` group.
fn first_names(rest: &str) -> Vec<String> {
    let word = |s: &str| -> String {
        s.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let Some(group) = rest.strip_prefix('{') else { return vec![word(rest)] };
    members(group).iter().map(|member| word(member)).filter(|name| !name.is_empty()).collect()
}

/// The members of a group whose opening brace was just taken.
fn members(group: &str) -> Vec<String> {
    let (mut level, mut current, mut all) = (0, String::new(), Vec::new());
    for c in group.chars() {
        match c {
            '{' => level += 1,
            '}' if level == 0 => break,
            '}' => level -= 1,
            ',' if level == 0 => {
                all.push(std::mem::take(&mut current));
                continue;
            }
            _ => {}
        }
        current.push(c);
    }
    all.push(current);
    all
}

/// Every path named in a `std::{...}` group, written out.
fn std_groups(code: &str) -> Vec<(usize, String)> {
    fn spread(prefix: &str, rest: &str, line: usize, found: &mut Vec<(usize, String)>) {
        for member in members(rest) {
            let member = member.trim();
            match member.find('{') {
                Some(open) => {
                    let prefix = format!("{prefix}{}", &member[..open]);
                    spread(&prefix, &member[open + 1..], line, found);
                }
                None => found.push((line, format!("{prefix}{member}"))),
            }
        }
    }
    let mut found = Vec::new();
    for (at, _) in code.match_indices("std::") {
        let end = code[at..].find([';', '\n', '(']).map_or(code.len(), |n| at + n);
        let Some(open) = code[at..end].find('{').map(|n| at + n) else { continue };
        let line = code[..at].matches('\n').count() + 1;
        spread(&code[at..open], &code[open + 1..], line, &mut found);
    }
    found
}
