//! Where the first files of a stage come from.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use super::Work;
use super::container::Facts;
use super::definition::Stage;
use super::files::{How, copy_all};
use crate::error::{Error, Result};
use crate::image::Image;
use crate::image::attach::unpack_into;
use crate::image::oci::reference::Uri;
use crate::image::oci::{Limits, Unpacked, fill_from, unpack};
use crate::image::tools;
use crate::image::tree::{Tree, clear_set_id, failed};
use crate::image::watch::{self, Watch};
use crate::sys::process;

/// For messages.
pub(super) const AGENTS: &str = "docker, oci, oci-archive, docker-archive, localimage, debootstrap, scratch";

/// Whether there is such an agent.
pub(super) fn is_agent(name: &str) -> bool {
    AGENTS.split(", ").any(|agent| agent == name)
}

/// Whether a header says all that its agent needs; else what is wrong, and what to do.
pub(super) fn check(header: &BTreeMap<String, String>) -> std::result::Result<(), (String, String)> {
    let agent = header.get("bootstrap").map(String::as_str).unwrap_or_default();
    let needs = match agent {
        "scratch" => return Ok(()),
        "debootstrap" => ("osversion", "add a line `OSVersion: bookworm`, or another name of a release"),
        _ => ("from", "add a line `From: ...`"),
    };
    let Some(value) = header.get(needs.0) else {
        return Err((format!("bootstrap agent {agent} needs {}", needs.0), needs.1.to_owned()));
    };
    if agent == "debootstrap" {
        let all = [Some(value), header.get("mirrorurl")];
        let odd = |text: &&&String| text.starts_with('-') || !text.bytes().all(|b| b.is_ascii_graphic());
        return match all.iter().flatten().find(odd) {
            Some(text) => Err((format!("{text:?} is neither a release nor an address"), needs.1.to_owned())),
            None => Ok(()),
        };
    }
    match name(agent, header).map(|name| Uri::parse(&name)) {
        Some(Err(error)) => Err((error.to_string(), error.help().unwrap_or_default())),
        _ => Ok(()),
    }
}

/// The image that a header names, where it is to be fetched.
fn name(agent: &str, header: &BTreeMap<String, String>) -> Option<String> {
    let from = header.get("from")?;
    match agent {
        "docker" => {
            let name = from.strip_prefix("docker://").or_else(|| from.strip_prefix("//")).unwrap_or(from);
            let before = ["registry", "namespace"].iter().filter_map(|key| header.get(*key));
            let path: Vec<&str> = before.map(String::as_str).chain([name]).collect();
            Some(format!("docker://{}", path.join("/")))
        }
        "oci" | "oci-archive" | "docker-archive" => Some(format!("{agent}:{from}")),
        _ => None,
    }
}

/// Puts the first files into the tree.
pub(super) fn run(stage: &Stage, tree: &Tree, work: &Work<'_>) -> Result<()> {
    let agent = stage.header.get("bootstrap").map(String::as_str).unwrap_or_default();
    let of = |key: &str| stage.header.get(key).map(String::as_str).unwrap_or_default();
    match (agent, name(agent, &stage.header)) {
        (_, Some(name)) => fetch(&name, tree, work),
        ("localimage", _) => local(&work.options.fetch.cwd.join(of("from")), tree, work.watch),
        ("debootstrap", _) => debootstrap(stage, of("osversion"), tree),
        _ => Ok(()),
    }
}

fn fetch(name: &str, tree: &Tree, work: &Work<'_>) -> Result<()> {
    let uri = Uri::parse(name)?.ok_or_else(|| Error::new(format!("{name:?} is not a name of an image")))?;
    fill_from(tree, &uri, work.cache, &work.options.fetch, work.watch)
}

/// An image that is there already, a directory or a file.
pub(super) fn local(path: &Path, tree: &Tree, watch: &dyn Watch) -> Result<()> {
    let name = path.to_string_lossy();
    if !path.is_dir() {
        let (file, spec, remarks) = Image::look_at(&name)?;
        remarks.iter().for_each(|remark| remark.tell(&name, watch));
        watch.info("Extracting local image...");
        unpack_into(tree.path(), &spec, &file, &watch::standing(watch, "unpacking"))?;
        return clear_set_id(tree.dir(), 0).map_err(|e| failed("take set-id bits from", tree.path(), &e));
    }
    let image = Image::open(&name)?;
    let how = How { follow: false, owners: nix::unistd::geteuid().is_root() };
    let left = copy_all(image.dir(), tree, how).map_err(|e| failed("copy the image", path, &e))?;
    left.tell(watch);
    Ok(())
}

/// A Debian, through mmdebstrap: as an archive, so that owners and devices are what our own unpacker makes of them.
fn debootstrap(stage: &Stage, suite: &str, tree: &Tree) -> Result<()> {
    let mut command = tools::program("mmdebstrap", "mmdebstrap")?;
    command.args(["--quiet", "--variant=minbase", "--format=tar"]);
    if let Some(include) = stage.header.get("include") {
        let all: Vec<&str> = include.split([' ', ',']).filter(|name| !name.is_empty()).collect();
        command.arg(format!("--include={}", all.join(",")));
    }
    command.args([suite, "-"]);
    let named = stage.header.get("mirrorurl").map(|url| url.replace("%{OSVERSION}", suite));
    if let Some(mirror) = named.or_else(|| host_mirror(suite)) {
        command.arg(mirror);
    }
    let mut child = process::bound(&mut command)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| Error::new("cannot start mmdebstrap").because(&e))?;
    let limits = Limits::for_stored(1 << 30);
    let cannot_unpack =
        |error: &Error| Error::new("cannot unpack what mmdebstrap has made").because_of(error);
    let (unpacked, more) = match child.stdout.take() {
        Some(mut stdout) => {
            received(&mut stdout, |stdout| unpack(tree, stdout, limits, &mut Unpacked::default()))
        }
        None => (Ok(()), false),
    };
    let status = child.wait().map_err(|e| Error::new("cannot wait for mmdebstrap").because(&e))?;
    if let (Err(error), true) = (&unpacked, more) {
        return Err(cannot_unpack(error));
    }
    // Where both failed, it was mmdebstrap that stopped writing, and it has said why.
    if !status.success() {
        return Err(Error::new(format!("mmdebstrap could not make a {suite}"))
            .because(format!("it ended with {status}"))
            .help(match Facts::find() {
                Facts::Single => "its own words are above; check OSVersion, MirrorURL and Include; without subordinate ids it \
                    needs fakechroot and fakeroot as well (`apt install fakechroot fakeroot`)",
                _ => "its own words are above; check OSVersion, MirrorURL and Include",
            }));
    }
    unpacked.map_err(|error| cannot_unpack(&error))
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
}
