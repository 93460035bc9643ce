//! House rules that no compiler checks: file heads, lengths, unfinished work, where `unsafe` may
//! stand, links of the documents, and that no file names a path of somebody's machine.

mod source;

use std::path::Path;

const COLUMNS_MAX: usize = 100;
const LINES_MAX: usize = 800;

/// Folders whose Rust files are read, besides `build.rs`-like files, of which there are none.
const FOLDERS: &[&str] = &["src", "tests", "testbed", "benches"];

/// Folders where `unsafe` may stand.
const UNSAFE_FOLDERS: &[&str] = &["src/io/", "src/lab/"];

/// Documents that have to be there.
const DOCUMENTS: &[&str] = &["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"];

#[test]
fn every_source_file_says_what_it_owns_and_stays_readable() {
    complain(|wrong| {
        for (name, text) in rust_sources() {
            if !text.starts_with("//!") {
                wrong.push(format!("{name}: does not open with //!"));
            }
            let lines = text.lines().count();
            if lines > LINES_MAX {
                wrong.push(format!("{name}: {lines} lines; at most {LINES_MAX}"));
            }
            for (index, line) in text.lines().enumerate() {
                let columns = line.chars().count();
                if columns > COLUMNS_MAX {
                    wrong.push(format!("{name}:{}: {columns} columns", index + 1));
                }
            }
        }
    });
}

#[test]
fn nothing_is_left_unfinished() {
    // Written in halves, so that this file passes its own test.
    let in_code = [concat!("to", "do!"), concat!("unimple", "mented!"), concat!("db", "g!")];
    let in_text = [concat!("FIX", "ME"), concat!("X", "XX"), concat!("TO", "DO")];
    let ignored = concat!("#[ig", "nore");
    complain(|wrong| {
        for (name, text) in rust_sources() {
            for (index, line) in source::code(&text).lines().enumerate() {
                if in_code.iter().any(|word| source::has_word(line, word)) || line.contains(ignored)
                {
                    wrong.push(format!("{name}:{}: {}", index + 1, line.trim()));
                }
            }
        }
        for (name, text) in all_texts() {
            for (index, line) in text.lines().enumerate() {
                if in_text.iter().any(|word| source::has_word(line, word)) {
                    wrong.push(format!("{name}:{}: {}", index + 1, line.trim()));
                }
            }
        }
    });
}

#[test]
fn unsafe_stands_only_where_the_kernel_is_met_and_is_argued() {
    let word = concat!("un", "safe");
    complain(|wrong| {
        for (name, text) in rust_sources() {
            let lines: Vec<&str> = text.lines().collect();
            for (index, line) in source::code(&text).lines().enumerate() {
                if !source::has_word(line, word) {
                    continue;
                }
                if !UNSAFE_FOLDERS.iter().any(|folder| name.starts_with(folder)) {
                    wrong.push(format!("{name}:{}: {}", index + 1, line.trim()));
                } else if line.contains('{') && !is_argued(&lines, index) {
                    wrong.push(format!("{name}:{}: no SAFETY comment", index + 1));
                }
            }
        }
    });
}

/// Whether a SAFETY comment stands on the line or in the comment or statement above it.
fn is_argued(lines: &[&str], index: usize) -> bool {
    lines[index.saturating_sub(8)..=index].iter().any(|line| line.contains("SAFETY"))
}

#[test]
fn the_documents_are_there_and_their_links_resolve() {
    complain(|wrong| {
        for document in DOCUMENTS {
            let path = source::root().join(document);
            if !path.is_file() {
                wrong.push(format!("{document}: missing"));
                continue;
            }
            let text = source::text(&path).expect("documents are UTF-8");
            for (line, target) in links(&text) {
                let file = target.split('#').next().unwrap_or_default();
                if target.contains("://") || target.starts_with("mailto:") {
                    continue;
                }
                if file.is_empty() {
                    if !anchors(&text).iter().any(|anchor| target[1..] == **anchor) {
                        wrong.push(format!("{document}:{line}: no heading {target}"));
                    }
                } else if file.starts_with("..") || !source::root().join(file).exists() {
                    wrong.push(format!("{document}:{line}: {file} does not exist"));
                }
            }
        }
    });
}

#[test]
fn no_file_names_a_path_of_somebodys_machine() {
    // Written in halves, so that this file passes its own test.
    let paths = [
        concat!("/wo", "rk/"),
        concat!("/ho", "me/"),
        concat!("/ro", "ot/"),
        concat!("/Us", "ers/"),
        concat!("../sha", "red"),
    ];
    complain(|wrong| {
        for (name, text) in all_texts() {
            for (index, line) in text.lines().enumerate() {
                if let Some(path) = paths.iter().find(|path| line.contains(**path)) {
                    wrong.push(format!("{name}:{}: names {path}", index + 1));
                }
            }
        }
    });
}

/// Collects complaints and fails with all of them.
fn complain(check: impl FnOnce(&mut Vec<String>)) {
    let mut wrong = Vec::new();
    check(&mut wrong);
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

/// (path, text) of every Rust file.
fn rust_sources() -> Vec<(String, String)> {
    FOLDERS
        .iter()
        .map(|folder| source::root().join(folder))
        .filter(|folder| folder.is_dir())
        .flat_map(|folder| source::rust_files(&folder))
        .map(|path| (source::shown(&path), source::text(&path).expect("Rust files are UTF-8")))
        .collect()
}

/// (path, text) of every text file of the project, but for the lock file, which cargo writes.
fn all_texts() -> Vec<(String, String)> {
    source::files(source::root())
        .into_iter()
        .filter(|path| path.file_name() != Some(Path::new("Cargo.lock").as_os_str()))
        .filter_map(|path| Some((source::shown(&path), source::text(&path)?)))
        .collect()
}

/// (line, target) of every inline link of a Markdown text, code blocks left out.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut is_code = false;
    for (index, line) in text.lines().enumerate() {
        is_code ^= line.trim_start().starts_with("```");
        if is_code {
            continue;
        }
        for (at, _) in line.match_indices("](") {
            if let Some(end) = line[at + 2..].find(')') {
                found.push((index + 1, line[at + 2..at + 2 + end].to_owned()));
            }
        }
    }
    found
}

/// The anchors of a Markdown text's headings, as code hosts make them.
fn anchors(text: &str) -> Vec<String> {
    text.lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| {
            line.trim_start_matches('#')
                .trim()
                .to_lowercase()
                .chars()
                .filter(|c| c.is_alphanumeric() || *c == ' ' || *c == '-' || *c == '_')
                .map(|c| if c == ' ' { '-' } else { c })
                .collect()
        })
        .collect()
}
