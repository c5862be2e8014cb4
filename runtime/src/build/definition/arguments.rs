//! `%arguments`, and `{{ NAME }}` wherever a value is to stand.

use std::collections::{BTreeMap, BTreeSet};

use super::{Wrong, is_blank, sections, wrong};

type Result<T> = std::result::Result<T, Wrong>;

/// The lines of a stage with all values filled in. The names of `given` that occur are put into `used`.
pub(super) fn fill(
    lines: &[&str],
    first: usize,
    given: &BTreeMap<String, String>,
    used: &mut BTreeSet<String>,
) -> Result<Vec<String>> {
    let mut values = defaults(lines, first)?;
    for (name, value) in given {
        if value.contains('\n') {
            return wrong(first, format!("the value given for {name} has more than one line"), "");
        }
        if values.insert(name.clone(), value.clone()).is_some() {
            used.insert(name.clone());
        }
    }
    let mut filled = Vec::with_capacity(lines.len());
    for (index, line) in lines.iter().enumerate() {
        filled.push(fill_line(line, first + index, &values, used)?);
    }
    Ok(filled)
}

/// What `%arguments` says.
fn defaults(lines: &[&str], first: usize) -> Result<BTreeMap<String, String>> {
    let mut values = BTreeMap::new();
    let mut inside = false;
    for (index, line) in lines.iter().enumerate() {
        if let Some(name) = sections::name(line) {
            inside = name == "arguments";
            continue;
        }
        if !inside || is_blank(line) {
            continue;
        }
        match line.split_once('=') {
            Some((name, value)) if is_name(name.trim()) => {
                values.insert(name.trim().to_owned(), value.trim().trim_matches('"').to_owned());
            }
            _ => {
                let help = "write NAME=VALUE; a name has letters, digits and underscores";
                return wrong(
                    first + index,
                    format!("{:?} in %arguments is no value for a name", line.trim()),
                    help,
                );
            }
        }
    }
    Ok(values)
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn fill_line(
    line: &str,
    number: usize,
    values: &BTreeMap<String, String>,
    used: &mut BTreeSet<String>,
) -> Result<String> {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(start) = rest.find("{{") {
        let after = &rest[start + 2..];
        let inner = after.find("}}").map(|end| &after[..end]);
        // Other languages have such brackets as well; only a single word between them is meant for us.
        let Some(inner) = inner.filter(|inner| is_name(inner.trim())) else {
            out.push_str(&rest[..start + 2]);
            rest = after;
            continue;
        };
        let name = inner.trim();
        let Some(value) = values.get(name) else {
            let help = format!("give it one with --build-arg {name}=VALUE, or a default in %arguments");
            return wrong(number, format!("{{{{ {name} }}}} has no value"), help);
        };
        used.insert(name.to_owned());
        out.push_str(&rest[..start]);
        out.push_str(value);
        rest = &after[inner.len() + 2..];
    }
    out.push_str(rest);
    Ok(out)
}
