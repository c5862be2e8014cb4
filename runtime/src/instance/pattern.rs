//! `job*`, as a user selects instances by name.

/// Whether `name` matches a pattern of `*` (any text), `?` (any character) and `[a-z]`, `[^a-z]` (one of a set).
/// A set that is not closed matches nothing.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let name: Vec<char> = name.chars().collect();
    let (mut p, mut n) = (0, 0);
    // Where to go on when it turns out that the last star has to take one character more.
    let mut retry: Option<(usize, usize)> = None;
    while n < name.len() {
        let step = match pattern.get(p) {
            Some('*') => {
                retry = Some((p + 1, n));
                p += 1;
                continue;
            }
            Some('?') => Some(1),
            Some('[') => set(&pattern[p..], name[n]),
            Some(c) => (*c == name[n]).then_some(1),
            None => None,
        };
        match (step, &mut retry) {
            (Some(length), _) => {
                p += length;
                n += 1;
            }
            (None, Some((after_star, taken))) => {
                *taken += 1;
                (p, n) = (*after_star, *taken);
            }
            (None, None) => return false,
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// The length of the set at the start of `pattern` when `c` is in it.
fn set(pattern: &[char], c: char) -> Option<usize> {
    let close = pattern.iter().position(|c| *c == ']')?;
    let mut inside = &pattern[1..close];
    let inverted = inside.first() == Some(&'^');
    if inverted {
        inside = &inside[1..];
    }
    let mut found = false;
    while let Some(&low) = inside.first() {
        let range = inside.get(1) == Some(&'-') && inside.len() > 2;
        let high = if range { inside[2] } else { low };
        found |= (low..=high).contains(&c);
        inside = &inside[if range { 3 } else { 1 }..];
    }
    (found != inverted).then_some(close + 1)
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn globs() {
        for (pattern, name) in [
            ("job", "job"),
            ("job*", "job"),
            ("job*", "job-1"),
            ("*", "x"),
            ("*1*2", "a1b1c2"),
            ("j?b", "job"),
            ("job[0-9]", "job7"),
            ("job[^0-9]", "jobx"),
            ("[a-]*", "-x"),
            ("*[ab]c", "xxbbc"),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("job", "jobs"),
            ("jobs", "job"),
            ("", "x"),
            ("j?b", "jb"),
            ("job[0-9]", "jobx"),
            ("job[^0-9]", "job1"),
            ("job[0", "job0"),
            ("[]", "x"),
            ("[9-0]", "5"),
            ("*a", "b"),
        ] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
        // Would take for ever if every star tried everything.
        assert!(!matches(&"*a".repeat(30), &"a".repeat(29)));
    }
}
