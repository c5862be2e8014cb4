//! A Debian as the first files of a stage, through mmdebstrap: as an archive, so that owners and devices are what our own
//! unpacker makes of them.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use super::Work;
use super::container::Facts;
use super::definition::Stage;
use crate::error::{Error, Result};
use crate::image::oci::{Limits, Unpacked, unpack};
use crate::image::output::Output;
use crate::image::tools;
use crate::image::tree::Tree;
use crate::sys::process;

/// A helper of mmdebstrap's that outlives it may hold the pipe open.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// The last words of mmdebstrap, in bytes.
const TAIL: usize = 16 << 10;
/// Its words that say only that something went wrong, not what.
const GENERAL: [&str; 4] = ["apt-get ", "setup failed: ", "mmdebstrap failed", "Some index files failed"];

/// Whether a header says what can be asked of mmdebstrap; else what is wrong, and what to do.
pub(super) fn check(header: &BTreeMap<String, String>) -> std::result::Result<(), (String, String)> {
    let of = |key: &str| header.get(key).map(String::as_str).unwrap_or_default();
    let odd = |text: &&str| text.starts_with('-') || !text.bytes().all(|b| b.is_ascii_graphic());
    if let Some(text) = [of("osversion"), of("mirrorurl")].iter().find(|text| odd(text)) {
        return Err((
            format!("{text:?} is neither a release nor an address"),
            "add a line `OSVersion: bookworm`, or another name of a release".to_owned(),
        ));
    }
    let name = |c: char| c.is_ascii_alphanumeric() || "+-.:=/~".contains(c);
    let package =
        |word: &&str| word.starts_with(|c: char| c.is_ascii_alphanumeric()) && word.chars().all(name);
    match packages(of("include")).find(|word| !package(word)) {
        Some(word) => Err((
            format!("{word:?} is no name of a package"),
            "write Include: NAME NAME, with names as apt knows them".to_owned(),
        )),
        None => Ok(()),
    }
}

fn packages(include: &str) -> impl Iterator<Item = &str> {
    include.split([' ', ',', '\t']).filter(|name| !name.is_empty())
}

/// Puts it into the tree.
pub(super) fn run(stage: &Stage, tree: &Tree, work: &Work<'_>) -> Result<()> {
    let of = |key: &str| stage.header.get(key).map(String::as_str).unwrap_or_default();
    let suite = of("osversion");
    let mut command = tools::program("mmdebstrap", "mmdebstrap")?;
    command.args(["--variant=minbase", "--format=tar"]);
    let include: Vec<&str> = packages(of("include")).collect();
    if !include.is_empty() {
        command.arg(format!("--include={}", include.join(",")));
    }
    command.args([suite, "-"]);
    let named = stage.header.get("mirrorurl").map(|url| url.replace("%{OSVERSION}", suite));
    if let Some(mirror) = named.or_else(|| host_mirror(suite)) {
        command.arg(mirror);
    }
    // Where it is killed it leaves its own places behind, so that they lie in one of ours.
    let place = place(work.options.fetch.guarded)?;
    command.env("TMPDIR", place.path());
    work.watch.info(&format!("Installing {suite} with mmdebstrap"));
    // It hears of our end, also through the pipes where another program runs it, and cleans up.
    if nix::unistd::geteuid().is_root() {
        process::with_mounts_of_its_own(&mut command);
    }
    let mut child = process::asked_to_end(&mut command)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| Error::new("cannot start mmdebstrap").because(&e))?;
    let (tell, told) = mpsc::channel();
    let stderr = child.stderr.take();
    // Nobody who has given up waiting is told.
    std::thread::spawn(move || drop(tell.send(stderr.map(last_of).unwrap_or_default())));
    let limits = Limits::for_stored(1 << 30);
    let (unpacked, more) = match child.stdout.take() {
        Some(mut stdout) => {
            received(&mut stdout, |stdout| unpack(tree, stdout, limits, &mut Unpacked::default()))
        }
        None => (Ok(()), false),
    };
    let status = child.wait().map_err(|e| Error::new("cannot wait for mmdebstrap").because(&e))?;
    let said = told.recv_timeout(LAST_WORDS).unwrap_or_default();
    let cannot_unpack = |e: &Error| Error::new("cannot unpack what mmdebstrap has made").because_of(e);
    if let (Err(error), true) = (&unpacked, more) {
        return Err(cannot_unpack(error));
    }
    // Where both failed, it was mmdebstrap that stopped writing, and it has said why.
    if !status.success() {
        return Err(in_words(suite, &status.to_string(), &said));
    }
    unpacked.map_err(|error| cannot_unpack(&error))
}

/// A directory for mmdebstrap that is removed in the end, also by the users whom it has made up.
fn place(guarded: bool) -> Result<Output> {
    let cannot = || Error::new("mmdebstrap has no directory to work in");
    let parent = std::env::temp_dir();
    let place = Output::scratch(&parent, OsStr::new("mmdebstrap"), guarded)
        .map_err(|error| cannot().because_of(&error))?;
    let everybody = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(place.path(), everybody).map_err(|e| cannot().because(&e))?;
    Ok(place)
}

/// Takes an archive from a pipe, and whether more came than was taken after a failure: then the failure is ours. What
/// stands behind a whole archive is read, so that the writer does not meet a closed pipe.
fn received<R: io::Read>(pipe: &mut R, take: impl FnOnce(&mut R) -> Result<()>) -> (Result<()>, bool) {
    let taken = take(pipe);
    let more = match &taken {
        Ok(()) => io::copy(pipe, &mut io::sink()).is_err(),
        Err(_) => pipe.read(&mut [0]).is_ok_and(|n| n > 0),
    };
    (taken, more)
}

fn last_of(mut pipe: impl Read) -> String {
    let mut tail: VecDeque<u8> = VecDeque::new();
    let mut buffer = [0; 8192];
    while let Ok(count @ 1..) = pipe.read(&mut buffer) {
        tail.extend(buffer.get(..count).unwrap_or_default());
        tail.drain(..tail.len().saturating_sub(TAIL));
    }
    String::from_utf8_lossy(tail.make_contiguous()).into_owned()
}

fn in_words(suite: &str, status: &str, said: &str) -> Error {
    let mut error = Error::new(format!("mmdebstrap could not make a {suite}"));
    let told = said.lines().filter_map(|line| line.trim().strip_prefix("E: "));
    let mut causes: Vec<&str> = told.filter(|line| !GENERAL.iter().any(|g| line.starts_with(g))).collect();
    causes.dedup();
    if said.contains("No space left on device") {
        return error
            .because("the file system is full")
            .detail(said)
            .help("make room where the image is built and in $TMPDIR, or /tmp where that is not set");
    }
    if causes.is_empty() {
        error = error.because(format!("it ended with {status}")).detail(said);
    }
    for cause in causes.iter().take(3) {
        error = error.because(*cause);
    }
    let check = "check OSVersion, MirrorURL and Include";
    error.help(match Facts::find() {
        Facts::Single => format!(
            "{check}; without subordinate ids it needs fakechroot and fakeroot as well (`apt install fakechroot \
             fakeroot`)"
        ),
        _ => check.to_owned(),
    })
}

/// The mirror from which this host itself installs that release; mmdebstrap has its own where there is none.
fn host_mirror(suite: &str) -> Option<String> {
    let out = Command::new("apt-get")
        .args(["indextargets", "--format=$(REPO_URI)", "Created-By: Packages", "Component: main"])
        .arg(format!("Codename: {suite}"))
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    text.lines().next().map(str::to_owned).filter(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_failure_it_is() {
        let ours = || Err(Error::new("no space is left"));
        let mut whole = &b"archive, and padding"[..];
        assert!(matches!(received(&mut whole, |_| Ok(())), (Ok(()), false)));
        assert!(whole.is_empty());
        assert!(matches!(received(&mut &b"more"[..], |_| ours()), (Err(_), true)));
        assert!(matches!(received(&mut io::empty(), |_| ours()), (Err(_), false)));
    }

    #[test]
    fn the_last_words_name_the_cause() {
        let told = |said: &str| in_words("bookworm", "exit status: 25", said).why.join("\n");
        let said = "I: running apt-get update...\nE: Unable to locate package x\n\
                    E: setup failed: E: apt-get -o X=y install failed\nE: mmdebstrap failed to run\n";
        assert_eq!(told(said), "Unable to locate package x");
        assert_eq!(told("E: mmdebstrap failed to run\n"), "it ended with exit status: 25");
        assert_eq!(told("dpkg: cannot copy: No space left on device\nE: x\n"), "the file system is full");
        assert_eq!(last_of(&vec![b'x'; TAIL + 10][..]).len(), TAIL);
    }

    #[test]
    fn headers_that_ask_for_something_else() {
        let told = |key: &str, value: &str| {
            let header = [("osversion", "sid"), (key, value)];
            check(&header.map(|(k, v)| (k.to_owned(), v.to_owned())).into()).map_err(|(what, _)| what)
        };
        assert_eq!(told("include", "mailcap, libc6:amd64 ca-certificates"), Ok(()));
        assert_eq!(told("include", "mailcap -oX=y"), Err("\"-oX=y\" is no name of a package".to_owned()));
        assert!(told("include", "a;b").is_err() && told("mirrorurl", "--x").is_err());
        assert_eq!(told("mirrorurl", "http://x/%{OSVERSION}"), Ok(()));
    }
}
