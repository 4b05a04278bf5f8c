//! The import table of `src/lib.rs`, the size limits and the bans, as tests.

use std::fs;
use std::path::{Path, PathBuf};

/// Which modules of ours each module may name.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("sys", &[]),
    ("api", &[]),
    ("logging", &[]),
    ("crypto", &["sys"]),
    ("format", &["crypto", "api"]),
    ("client", &["api", "crypto", "sys"]),
    ("kms", &["api", "crypto", "sys"]),
    ("tree", &["format", "crypto", "sys"]),
    ("volume", &["tree", "format", "client", "crypto", "api", "sys"]),
    ("fuse", &["tree", "volume", "sys"]),
    ("cli", &["fuse", "volume", "client", "api", "sys"]),
];
/// Crates that may be named in one module only, and which.
const ONE_HOME: &[(&str, &[&str])] = &[
    ("aws_lc_rs", &["crypto"]),
    ("aes_gcm_siv", &["crypto"]),
    ("hkdf", &["crypto"]),
    ("sha2", &["crypto"]),
    ("argon2", &["crypto"]),
    ("ed25519_dalek", &["crypto"]),
    ("ml_dsa", &["crypto"]),
    ("ml_kem", &["crypto"]),
    ("fuser", &["fuse"]),
    ("rusqlite", &["kms"]),
    ("hyper", &["kms"]),
];
const MAX_FUNCTION_LINES: usize = 70;
const MAX_FILE_LINES: usize = 600;

fn sources() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    walk(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")), &mut found);
    assert!(found.len() > 20, "the sources were not found");
    found
}

fn walk(dir: &Path, found: &mut Vec<(PathBuf, String)>) {
    for entry in fs::read_dir(dir).expect("src is readable") {
        let path = entry.expect("src is readable").path();
        if path.is_dir() {
            walk(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path).expect("sources are UTF-8");
            found.push((path, text));
        }
    }
}

/// The lines before the inline tests, without comments.
fn code_lines(text: &str) -> Vec<&str> {
    text.lines()
        .take_while(|line| !line.trim_start().starts_with("#[cfg(test)]"))
        .map(|line| line.split("//").next().unwrap_or(""))
        .collect()
}

fn module_of(path: &Path) -> String {
    let relative = path.strip_prefix(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).expect("below src");
    let first = relative.components().next().expect("a file name").as_os_str().to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

/// Whether `line` names the module `crate::target`, and not merely one whose name begins like it.
fn names_module(line: &str, target: &str) -> bool {
    let path = format!("crate::{target}");
    line.match_indices(&path)
        .any(|(at, _)| !line[at + path.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_'))
}

/// Word match of `name::` in `line`.
fn names_path(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = &line[at + name.len()..];
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_') && after.starts_with("::")
    })
}

#[test]
fn imports_run_downward_only() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let module = module_of(&path);
        let Some((_, allowed)) = MAY_IMPORT.iter().find(|(m, _)| *m == module) else { continue };
        for (number, line) in code_lines(&text).iter().enumerate() {
            for (target, _) in MAY_IMPORT {
                let own = *target == module || *target == "logging" || allowed.contains(target);
                if !own && names_module(line, target) {
                    wrong.push(format!("{}:{} imports {target}", path.display(), number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "see the table in src/lib.rs:\n{}", wrong.join("\n"));
}

#[test]
fn only_the_home_module_names_a_fenced_crate() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let module = module_of(&path);
        for (number, line) in code_lines(&text).iter().enumerate() {
            for (name, homes) in ONE_HOME {
                if names_path(line, name) && !homes.contains(&module.as_str()) {
                    wrong.push(format!("{}:{} names {name}", path.display(), number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn unsafe_stands_in_sys_only_and_unwrap_in_tests_only() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        // A module of tests alone, declared under `#[cfg(test)]`.
        if path.to_string_lossy().ends_with("tests.rs") {
            continue;
        }
        for (number, line) in code_lines(&text).iter().enumerate() {
            let place = format!("{}:{}", path.display(), number + 1);
            if line.contains("unsafe ") && module_of(&path) != "sys" {
                wrong.push(format!("{place} unsafe outside sys"));
            }
            if line.contains(".unwrap()") {
                wrong.push(format!("{place} unwrap outside tests"));
            }
            if line.contains("todo!(") || line.contains("unimplemented!(") {
                wrong.push(format!("{place} a stub"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_and_functions_stay_short() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let lines = code_lines(&text);
        if lines.len() > MAX_FILE_LINES {
            wrong.push(format!("{} has {} lines", path.display(), lines.len()));
        }
        for (start, length) in functions(&lines) {
            if length > MAX_FUNCTION_LINES {
                wrong.push(format!("{}:{} function of {length} lines", path.display(), start + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Functions as (first line, length), by indentation: rustfmt closes a function at the column it opened.
fn functions(lines: &[&str]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let trimmed = line.trim_start();
        let is_fn = ["fn ", "pub fn ", "async fn ", "pub async fn ", "const fn ", "pub const fn "]
            .iter()
            .any(|p| trimmed.starts_with(p))
            || (trimmed.starts_with("pub(") && trimmed.contains(" fn "));
        if !is_fn {
            continue;
        }
        let close = format!("{}}}", &line[..line.len() - trimmed.len()]);
        if let Some(length) = lines[start..].iter().position(|l| l.trim_end() == close) {
            found.push((start, length + 1));
        }
    }
    found
}

#[test]
fn every_module_says_what_it_is() {
    for (path, text) in sources() {
        assert!(text.starts_with("//!"), "{} does not open with what it is", path.display());
    }
}
