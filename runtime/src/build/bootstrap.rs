//! Where the first files of a stage come from.

use std::collections::BTreeMap;
use std::path::Path;

use super::definition::Stage;
use super::files::{How, copy_all};
use super::{Work, debootstrap};
use crate::error::{Error, Result};
use crate::image::Image;
use crate::image::attach::unpack_into;
use crate::image::oci::fill_from;
use crate::image::oci::reference::Uri;
use crate::image::tree::{Tree, clear_set_id, failed, is_full, room};
use crate::image::watch::{self, Watch};

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
    if !header.contains_key(needs.0) {
        return Err((format!("bootstrap agent {agent} needs {}", needs.0), needs.1.to_owned()));
    }
    if agent == "debootstrap" {
        return debootstrap::check(header);
    }
    match name(agent, header).map(|name| Uri::parse(&name)) {
        Some(Err(error)) => Err((error.to_string(), error.help().unwrap_or_default())),
        _ => Ok(()),
    }
}

/// Keywords of a header that its agent makes nothing of, and the agent.
pub(super) fn without_meaning(header: &BTreeMap<String, String>) -> Vec<(&str, &str)> {
    let agent = header.get("bootstrap").map(String::as_str).unwrap_or_default();
    let takes: &[&str] = match agent {
        "docker" => &["from", "registry", "namespace"],
        "debootstrap" => &["osversion", "mirrorurl", "include"],
        "scratch" => &[],
        _ => &["from"],
    };
    let others = header.keys().map(String::as_str).filter(|key| !["bootstrap", "stage"].contains(key));
    others.filter(|key| !takes.contains(key)).map(|key| (key, agent)).collect()
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
        ("debootstrap", _) => debootstrap::run(stage, tree, work),
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
    let left = copy_all(image.dir(), tree, how).map_err(|e| {
        let error = failed("copy", &e.below(Path::new(""), path), &e.error);
        if is_full(&e.error) { error.help(room(tree.path())) } else { error }
    })?;
    left.tell(watch);
    Ok(())
}
