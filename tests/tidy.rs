//! The invariants that a text or a dependency can break. What a lint can see is left to the lints; that these stay
//! is seen to here.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::tree::below_where;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// The most lines that a source file may have without its tests, and a function without blanks and comments.
const FILE_LINES: usize = 500;
const FUNCTION_LINES: usize = 72;

fn workspace() -> PathBuf {
    let runtime = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    runtime.parent().map(Path::to_owned).unwrap_or(runtime)
}

/// Rust files below a directory of the workspace: the path from the workspace, and the text.
fn sources(dir: &str) -> Outcome<Vec<(String, String)>> {
    let root = workspace();
    // Somebody who has tried the fuzzer has its dependencies there.
    let ours = |dir: &Path| dir.file_name().is_some_and(|name| name != "target");
    let mut found = Vec::new();
    for path in below_where(&root.join(dir), &ours)? {
        if path.is_file() && path.extension().is_some_and(|extension| extension == "rs") {
            let shown = path.strip_prefix(&root)?.to_string_lossy().into_owned();
            found.push((shown, fs::read_to_string(&path)?));
        }
    }
    assert!(!found.is_empty(), "no source below {dir}");
    found.sort();
    Ok(found)
}

/// Lines of these files for which `wrong` holds, as `file:line: text`.
fn lines(files: &[(String, String)], wrong: impl Fn(&str, &str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for (file, text) in files {
        for (number, line) in text.lines().enumerate().filter(|(_, line)| wrong(file, line)) {
            found.push(format!("{file}:{}: {}", number + 1, line.trim()));
        }
    }
    found
}

/// The part of a line that is no comment; strings are left as they are.
fn code(line: &str) -> &str {
    let line = line.trim_start();
    if line.starts_with("//") { "" } else { line.split(" // ").next().unwrap_or_default() }
}

fn all_sources() -> Outcome<Vec<(String, String)>> {
    let mut all = Vec::new();
    for dir in ["plugin-api", "runtime", "backends", "tests", "bench", "xtask", "fuzz/fuzz_targets"] {
        all.extend(sources(dir)?);
    }
    Ok(all)
}

#[test]
fn the_runtime_knows_no_engine_by_name() {
    let wrong = lines(&sources("runtime/src").unwrap(), |file, line| {
        let line = line.to_lowercase();
        let named = line.contains("dmtcp") || line.contains("criu") || line.contains("\"native\"");
        named && file != "runtime/src/cli/compat.rs"
    });
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn unsafe_code_is_where_it_may_be() {
    let allowed = |file: &str| {
        file.starts_with("runtime/src/sys/")
            || file == "runtime/src/registry/load.rs"
            || file.starts_with("plugin-api/src/abi")
            || ["sys/", "arch/", "entry.rs", "restore/skeleton.rs"]
                .iter()
                .any(|place| file.starts_with(&format!("backends/native/src/{place}")))
            || file.starts_with("backends/dmtcp/preload/")
            || file.starts_with("tests/faulty-backend/")
            || file == "tests/tidy.rs"
    };
    let wrong = lines(&all_sources().unwrap(), |file, line| {
        let code = code(line);
        let word = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "unsafe trait", "(unsafe_code"];
        word.iter().any(|word| code.contains(word)) && !allowed(file)
    });
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn only_the_loader_opens_libraries() {
    let wrong = lines(&sources("runtime/src").unwrap(), |file, line| {
        (code(line).contains("libloading::") || code(line).contains("dlopen"))
            && file != "runtime/src/registry/load.rs"
    });
    assert_eq!(wrong, Vec::<String>::new());
    let users = lines(&sources("runtime/src").unwrap(), |file, line| {
        let loads = code(line).contains("load::") || code(line).contains("registry::load(");
        loads
            && ["cli/", "monitor/", "init/", "launch/"].iter().any(|dir| file.contains(&format!("src/{dir}")))
    });
    assert_eq!(users, Vec::<String>::new(), "only a worker loads a plugin");
}

#[test]
fn the_plugin_interface_does_nothing_by_itself() {
    let wrong = lines(&sources("plugin-api/src").unwrap(), |_, line| {
        ["std::fs", "std::net", "std::process", "std::env", "nix::", "File::open"]
            .iter()
            .any(|w| code(line).contains(w))
    });
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn backends_keep_nothing_and_look_at_no_home() {
    let mut files = sources("backends").unwrap();
    files.retain(|(file, _)| file.contains("/src/"));
    let wrong = lines(&files, |_, line| {
        let kept = ["OnceLock", "OnceCell", "LazyLock", "thread_local!", "static mut", "lazy_static"];
        let read = ["\"HOME\"", "home_dir(", "process::exit", "println!"];
        kept.iter().chain(&read).any(|word| code(line).contains(word))
    });
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn files_and_functions_stay_readable() {
    let mut long = Vec::new();
    for (file, text) in all_sources().unwrap() {
        let all: Vec<&str> = text.lines().collect();
        let tests =
            all.windows(2).position(|two| two[0] == "#[cfg(test)]" && two[1].starts_with("mod tests"));
        let length = tests.unwrap_or(all.len());
        if length > FILE_LINES && !file.ends_with("tests.rs") {
            long.push(format!("{file}: {length} lines"));
        }
        // The text of snapshots counts as lines of a test.
        if !file.starts_with("tests/bad") {
            long.extend(long_functions(&file, &all));
        }
    }
    assert_eq!(long, Vec::<String>::new());
}

/// A function ends, as rustfmt writes it, with a bracket in the column where it began.
fn long_functions(file: &str, lines: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for (first, line) in lines.iter().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let words = line.trim_start();
        let is_function =
            ["fn ", "pub fn ", "pub(crate) fn ", "pub(super) fn "].iter().any(|w| words.starts_with(w));
        if !is_function || words.ends_with('}') || words.ends_with(';') {
            continue;
        }
        let end = format!("{}}}", " ".repeat(indent));
        let body = lines[first..].iter().take_while(|line| **line != end);
        let length =
            body.filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with("//")).count();
        if length > FUNCTION_LINES {
            found.push(format!("{file}:{}: a function of {length} lines", first + 1));
        }
    }
    found
}

#[test]
fn dependencies_point_one_way() {
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(workspace())
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let mut seen = 0;
    for package in packages {
        let name = package["name"].as_str().unwrap();
        let backend = package["manifest_path"].as_str().unwrap().contains("/backends/");
        seen += u32::from(backend || name == "stasis" || name == "stasis-plugin-api");
        for dependency in package["dependencies"].as_array().unwrap() {
            let on = dependency["name"].as_str().unwrap();
            let for_tests = dependency["kind"].as_str() == Some("dev");
            let ours = on.starts_with("stasis");
            match name {
                "stasis-plugin-api" => assert!(!ours, "{name} depends on {on}"),
                "stasis" => {
                    assert!(!ours || for_tests || on == "stasis-plugin-api", "the runtime depends on {on}");
                }
                _ if backend => assert_ne!(on, "stasis", "{name} depends on the runtime"),
                _ => {}
            }
        }
    }
    assert!(seen >= 3, "the packages were not found");
}

#[test]
fn the_lints_that_keep_the_rest_are_on() {
    let manifest: toml::Value =
        toml::from_str(&fs::read_to_string(workspace().join("Cargo.toml")).unwrap()).unwrap();
    let lints = &manifest["workspace"]["lints"];
    assert_eq!(lints["rust"]["unsafe_code"].as_str(), Some("deny"));
    for lint in [
        "undocumented_unsafe_blocks",
        "unwrap_used",
        "expect_used",
        "panic",
        "print_stdout",
        "print_stderr",
        "exit",
        "too_many_lines",
        "allow_attributes_without_reason",
        "disallowed_methods",
    ] {
        assert_eq!(lints["clippy"][lint].as_str(), Some("deny"), "{lint}");
    }
    let clippy = fs::read_to_string(workspace().join("clippy.toml")).unwrap();
    for rule in ["std::fs::remove_dir_all", "std::env::set_var", "std::process::exit"] {
        assert!(clippy.contains(rule), "{rule} is allowed");
    }
    for member in manifest["workspace"]["members"].as_array().unwrap() {
        let file = workspace().join(member.as_str().unwrap()).join("Cargo.toml");
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.contains("[lints]\nworkspace = true"), "{} does not take the lints", file.display());
    }
}

#[test]
fn nothing_is_left_to_do_later() {
    // In two parts, so that they do not stand here either.
    let words =
        [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X"), concat!("unimple", "mented!(")];
    let wrong = lines(&all_sources().unwrap(), |_, line| words.iter().any(|word| line.contains(word)));
    assert_eq!(wrong, Vec::<String>::new());
}
