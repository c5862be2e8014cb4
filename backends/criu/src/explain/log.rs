//! A log of CRIU's, line by line, without what stands in every log.

/// Complaints of runs in which nothing is wrong: some right that CRIU tries to use and can do without.
const NOISE: &[&str] = &[
    "Can't setup RLIMIT_NOFILE for self",
    "net: Unexpected error: -1(Operation not permitted)",
    "tun: ",
    "/tun.c:",
    "Can't keep kdat cache",
    "Can't load kdat cache",
    "Cannot find location for kerndat file",
    "will be ignored in restore command",
    "with interrupted system call",
];

/// Errors that follow from an earlier one.
const CONSEQUENCES: &[&str] = &[
    "Dumping FAILED",
    "Restoring FAILED",
    ") failed with ",
    "exited, status=",
    "killed by signal",
    "exited with",
    "Killing processes because of failure",
];

/// One line.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line<'a> {
    /// Where in the log.
    pub index: usize,
    /// The whole line.
    pub whole: &'a str,
    /// What it says, without the level and the place in CRIU's source.
    pub text: &'a str,
    /// The process that said it, or about which it was said.
    pub pid: Option<i32>,
    level: Level,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Error,
    Warning,
    /// No level: the loader's words, or CRIU's before it has a log.
    Plain,
}

/// The lines that count.
#[derive(Debug)]
pub(super) struct Log<'a> {
    lines: Vec<Line<'a>>,
}

impl<'a> Log<'a> {
    pub(super) fn read(text: &'a str) -> Self {
        let lines = text.lines().map(str::trim_end).enumerate();
        let lines = lines.filter(|(_, line)| !line.trim().is_empty());
        let lines = lines.filter(|(_, line)| !NOISE.iter().any(|noise| line.contains(noise)));
        Self { lines: lines.map(|(index, line)| parse(index, line)).collect() }
    }

    /// Whether any error was told.
    pub(super) fn has_errors(&self) -> bool {
        self.lines.iter().any(|line| line.level == Level::Error)
    }

    /// Everything that may tell a cause, in order.
    pub(super) fn errors(&self) -> impl Iterator<Item = &Line<'a>> {
        self.lines.iter().filter(|line| line.level != Level::Warning)
    }

    /// The last error that does not merely follow from another one.
    pub(super) fn last_cause(&self) -> Option<&Line<'a>> {
        let errors = || self.lines.iter().rev().filter(|line| line.level == Level::Error);
        let follows = |line: &&Line<'_>| CONSEQUENCES.iter().any(|word| line.text.contains(word));
        errors()
            .find(|line| !follows(line))
            .or_else(|| errors().next_back())
            .or_else(|| self.lines.iter().rev().find(|line| line.level == Level::Plain))
    }

    /// The process that the lines from this one on are about.
    pub(super) fn pid_after(&self, from: &Line<'_>) -> Option<i32> {
        let after = self.lines.iter().filter(|line| line.index >= from.index);
        from.pid.or_else(|| after.filter_map(|line| number_after(line.text, "(pid: ")).next())
    }

    /// The end of what counts, for a reader.
    pub(super) fn last_lines(&self, most: usize, longest: usize) -> String {
        let mut kept: Vec<&Line<'_>> = self.lines.iter().filter(|line| line.level != Level::Plain).collect();
        if kept.is_empty() {
            kept = self.lines.iter().collect();
        }
        let shown = kept.iter().skip(kept.len().saturating_sub(most));
        let shown = shown.map(|line| without_flags(line.whole).chars().take(longest).collect::<String>());
        shown.collect::<Vec<_>>().join("\n")
    }
}

/// `  100: Error (criu/files.c:1): what happened`, with or without the pid, with or without a time before it.
fn parse(index: usize, whole: &str) -> Line<'_> {
    let levels = [("Error (", Level::Error), ("Warn  (", Level::Warning), ("Warn (", Level::Warning)];
    for (mark, level) in levels {
        let Some((before, after)) = whole.split_once(mark) else { continue };
        let text = after.split_once("): ").map_or(after, |(_, text)| text).trim();
        let pid = before.trim_end().strip_suffix(':').and_then(last_number);
        return Line { index, whole, text, pid, level };
    }
    Line { index, whole, text: whole.trim(), pid: None, level: Level::Plain }
}

fn last_number(text: &str) -> Option<i32> {
    text.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// The number right after these words.
pub(super) fn number_after<T: std::str::FromStr>(text: &str, words: &str) -> Option<T> {
    let (_, rest) = text.split_once(words)?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// What stands between two pieces of text; to the end with an empty second one.
pub(super) fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(before)?;
    if after.is_empty() { Some(rest) } else { rest.split_once(after).map(|(inner, _)| inner) }
}

/// The same words without CRIU's advice to use a flag: its flags are none of ours.
pub(super) fn without_flags(text: &str) -> &str {
    let Some(flag) = text.find(" --") else { return text };
    let before = &text[..flag];
    let end = before.rfind(['.', ',', ';', '!']).unwrap_or(flag);
    text[..end].trim_end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_apart() {
        for (line, text, pid, level) in [
            ("Error (criu/mem.c:46): BUG at criu/mem.c:46", "BUG at criu/mem.c:46", None, Level::Error),
            ("   100: Error (criu/a.c:1): File x", "File x", Some(100), Level::Error),
            ("(00.004511)    100: Error (criu/a.c:1): File x", "File x", Some(100), Level::Error),
            ("(00.004511) Error (criu/a.c:1): File x", "File x", None, Level::Error),
            ("Warn  (criu/a.c:1): careful", "careful", None, Level::Warning),
            ("Error (", "", None, Level::Error),
            ("no level", "no level", None, Level::Plain),
        ] {
            let parsed = parse(0, line);
            assert_eq!((parsed.text, parsed.pid, parsed.level), (text, pid, level), "{line}");
        }
    }

    #[test]
    fn pieces_are_cut_out() {
        assert_eq!(number_after::<i32>("fd=10 path", "fd="), Some(10));
        assert_eq!(number_after::<i32>("fd=x", "fd="), None);
        assert_eq!(number_after::<u16>("fd=99999999", "fd="), None);
        assert_eq!(between("File /a b has bad", "File ", " has"), Some("/a b"));
        assert_eq!(between("path=/x", "path=", ""), Some("/x"));
        assert_eq!(between("path", "path=", ""), None);
        assert_eq!(without_flags("A is bad. Consider using --this option."), "A is bad");
        assert_eq!(without_flags("locks! You can try --file-locks to"), "locks");
        assert_eq!(without_flags("use the --this"), "use the");
        assert_eq!(without_flags("a - b"), "a - b");
    }

    #[test]
    fn a_good_log_has_nothing_in_it() {
        let log = Log::read(
            "Error (criu/net.c:1253): net: Unexpected error: -1(Operation not permitted)\n\
             Warn  (criu/kerndat.c:1285): Can't keep kdat cache on non-tempfs\n\
             Error (criu/util.c:1533): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n\
             Error (criu/tun.c:85): tun: Can't create tun: No such file or directory\n\
             Warn  (compel/arch/x86/src/lib/infect.c:418): Will restore 102 with interrupted system call\n\n",
        );
        assert!(!log.has_errors());
        assert!(log.last_cause().is_none());
        assert_eq!(log.last_lines(9, 99), "");
    }
}
