//! Images made of something else: definition files, which are read and carried out, images by name, directories, files.
//! What is made is a directory or a SIF file. Stages grow beside the image and are gone when it is done; nothing of it
//! is seen under its name before it is whole.

mod apps;
mod bootstrap;
mod container;
mod debootstrap;
pub mod definition;
mod files;
mod glob;
mod metadata;
mod pack;
mod source;
mod sparse;

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Error, Result};
use crate::image::oci::{self, Cache};
use crate::image::output::Output;
use crate::image::singularity;
use crate::image::tree::{Identity, Tree, room};
use crate::image::watch::Watch;
use crate::spec::RootWrite;
use crate::sys::process;
use definition::{Definition, Script, Stage};
pub use pack::{Packing, to_file};
pub use source::Source;

/// Whatever writes meets the end of a file system that has no more bytes than these.
const LITTLE: u64 = 1 << 20;

/// What a user can choose.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Replace an image that is there.
    pub force: bool,
    /// Leave `%test` out.
    pub no_test: bool,
    /// `%test` may write, into memory that is forgotten.
    pub test_writes: bool,
    /// Values for `{{ NAME }}`, before those of the definition file.
    pub arguments: BTreeMap<String, String>,
    /// Shown to `%post` and `%test`: on the host, and inside.
    pub binds: Vec<(PathBuf, PathBuf, bool)>,
    /// For images from registries.
    pub fetch: oci::Options,
    /// Where roots of containers are put together.
    pub runtime_dir: PathBuf,
    /// Seconds since 1970 for every time in the image, so that the same content gives the same file.
    pub time: Option<u32>,
}

/// What a build works with.
struct Work<'a> {
    options: &'a Options,
    cache: &'a Cache,
    watch: &'a dyn Watch,
    /// Roots of the stages that are done, by name.
    done: BTreeMap<String, PathBuf>,
    /// What grows, the image and its stages: nothing of that is copied from the host.
    own: Vec<Identity>,
}

/// Makes an image directory.
///
/// # Errors
/// What is wrong in the definition file, or what failed; then there is no new image, and an old one is as it was. A
/// script that failed brings its exit code along.
pub fn to_directory(
    source: &Source,
    out: &Path,
    options: &Options,
    cache: &Cache,
    watch: &dyn Watch,
) -> Result<()> {
    let output = Output::new(out, options.force, options.fetch.guarded)?;
    source.fill(&output, &mut Work::new(options, cache, watch))?;
    output.commit(watch)
}

impl<'a> Work<'a> {
    fn new(options: &'a Options, cache: &'a Cache, watch: &'a dyn Watch) -> Self {
        Self { options, cache, watch, done: BTreeMap::new(), own: Vec::new() }
    }
}

impl Work<'_> {
    fn definition(&mut self, file: &Path, output: &Output) -> Result<()> {
        let definition = Definition::load(file, &self.options.arguments)?;
        self.watch.info("Starting build...");
        let empty = || Error::new(format!("{} is empty", file.display()));
        let (last, earlier) = definition.stages.split_last().ok_or_else(empty)?;
        let tree = output.tree()?;
        self.own.extend(tree.identity());
        let mut kept = Vec::new();
        for (number, stage) in earlier.iter().enumerate() {
            let place = output.beside(&format!(".stage-{}", number + 1), self.options.fetch.guarded)?;
            let tree = place.tree()?;
            self.own.extend(tree.identity());
            self.stage(stage, &tree, &definition)?;
            if let Some(name) = &stage.name {
                self.done.insert(name.clone(), place.path());
            }
            kept.push(place);
        }
        self.stage(last, &tree, &definition)
    }

    fn stage(&self, stage: &Stage, tree: &Tree, definition: &Definition) -> Result<()> {
        let facts = container::Facts::find();
        for (keyword, agent) in bootstrap::without_meaning(&stage.header) {
            self.watch.warning(&format!(
                "{}: {keyword} means nothing to the bootstrap agent {agent}",
                definition.file.display()
            ));
        }
        let installs = stage.apps.values().any(|app| app.install.is_some());
        let debian = stage.header.get("bootstrap").is_some_and(|agent| agent == "debootstrap");
        let runs = stage.post.is_some() || stage.test.is_some() || installs;
        if let Some(remark) = facts.cannot().filter(|_| runs || debian) {
            self.watch.warning(remark);
        }
        if let Some(script) = &stage.pre {
            self.watch.info("Running pre scriptlet");
            on_host("%pre", script, tree)?;
        }
        bootstrap::run(stage, tree, self)?;
        singularity::skeleton(tree)?;
        if let Some(script) = &stage.setup {
            self.watch.info("Running setup scriptlet");
            on_host("%setup", script, tree)?;
        }
        for files in &stage.files {
            files::copy(files, tree, self, &definition.file)?;
        }
        apps::files(stage, tree, self, &definition.file)?;
        if let Some(script) = &stage.post {
            self.watch.info("Running post scriptlet");
            container::run("%post", script, tree, RootWrite::Image, &facts, self.options)?;
        }
        apps::install(stage, tree, &facts, self)?;
        metadata::write(stage, tree, definition, self.options.time, self.watch)?;
        if let Some(script) = stage.test.as_ref().filter(|_| !self.options.no_test) {
            self.watch.info("Running testscript");
            // The image is what it was before, whatever a test does.
            let write = if self.options.test_writes { RootWrite::Tmpfs } else { RootWrite::ReadOnly };
            container::run("%test", script, tree, write, &facts, self.options)?;
        }
        facts.settle(tree, runs)
    }
}

/// Runs a script of the definition file on the host, as whoever builds.
fn on_host(what: &str, script: &Script, tree: &Tree) -> Result<()> {
    let mut command = Command::new(script.shell.as_deref().unwrap_or("/bin/sh"));
    command.args(["-e", "-x", "-c", &script.text, what]);
    for name in ["STASIS_ROOTFS", "APPTAINER_ROOTFS", "SINGULARITY_ROOTFS"] {
        command.env(name, tree.path());
    }
    let status = process::bound(&mut command).status();
    let status = status.map_err(|e| Error::new(format!("cannot run {what}")).because(&e))?;
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        // As a shell tells it, and as a script inside is told.
        (code, signal) => Err(ended(what, code.or(signal.map(|signal| 128 + signal)).unwrap_or(255), tree)),
    }
}

/// A script that has failed. Why, it has said itself; that there was no room left may be far up in its words.
fn ended(what: &str, code: i32, tree: &Tree) -> Error {
    let error = Error::new(format!("{what} failed with exit code {code}"))
        .because("the image was not made")
        .code(u8::try_from(code).ok().filter(|code| *code != 0).unwrap_or(crate::error::FATAL));
    match nix::sys::statvfs::statvfs(tree.path()) {
        Ok(fs) if fs.blocks_available().saturating_mul(fs.fragment_size()) < LITTLE => {
            error.because("the file system is full").help(room(tree.path()))
        }
        _ => error,
    }
}
