//! What a stage says of itself, written into `/.singularity.d`.

use std::collections::BTreeMap;

use super::definition::{Definition, Script, Stage};
use crate::error::Result;
use crate::image::sif::own_arch;
use crate::image::singularity::{self, META};
use crate::image::tree::Tree;
use crate::image::watch::Watch;

/// For images whose author says nothing.
const RUNSCRIPT: &str = "exec /bin/sh \"$@\"\n";

/// Writes everything.
pub(super) fn write(
    stage: &Stage,
    tree: &Tree,
    definition: &Definition,
    time: Option<u32>,
    watch: &dyn Watch,
) -> Result<()> {
    tree.write(format!("{META}/Singularity"), 0o644, &definition.text)?;
    if let Some(help) = &stage.help {
        watch.info("Adding help info");
        tree.write(format!("{META}/runscript.help"), 0o644, help)?;
    }
    watch.info("Adding labels");
    singularity::add_labels(tree, &labels(stage, time))?;
    if let Some(environment) = &stage.environment {
        watch.info("Adding environment to container");
        let text = format!("#!/bin/sh\n# From %environment of the definition file.\n\n{environment}");
        tree.write(format!("{META}/env/90-environment.sh"), 0o755, text)?;
    }
    for (name, script, line) in [
        ("startscript", &stage.startscript, "Adding startscript"),
        ("runscript", &stage.runscript, "Adding runscript"),
        ("test", &stage.test, "Adding testscript"),
    ] {
        if let Some(script) = script {
            watch.info(line);
            self::script(tree, name, script)?;
        }
    }
    if !tree.exists(format!("{META}/runscript")) {
        singularity::script(tree, "runscript", "/bin/sh", RUNSCRIPT)?;
    }
    Ok(())
}

/// A script that is executed. One that names its own interpreter in the first line keeps it.
pub(super) fn script(tree: &Tree, name: &str, script: &Script) -> Result<()> {
    if script.text.starts_with("#!") {
        return tree.write(format!("{META}/{name}"), 0o755, &script.text);
    }
    singularity::script(tree, name, script.shell.as_deref().unwrap_or("/bin/sh"), &script.text)
}

/// Labels that every image has.
pub(super) fn standard_labels(arch: &str, time: Option<u32>) -> BTreeMap<String, String> {
    let time = time.and_then(|time| jiff::Timestamp::from_second(time.into()).ok());
    let time = time.unwrap_or_else(jiff::Timestamp::now);
    let of = |name: &str, value: String| (format!("org.label-schema.{name}"), value);
    BTreeMap::from([
        of("schema-version", "1.0".to_owned()),
        of("build-arch", arch.to_owned()),
        of("build-date", time.strftime("%A_%-d_%B_%Y_%-H:%M:%S_UTC").to_string()),
        of("usage.stasis.version", env!("CARGO_PKG_VERSION").to_owned()),
    ])
}

fn labels(stage: &Stage, time: Option<u32>) -> BTreeMap<String, String> {
    let mut all = standard_labels(own_arch(), time);
    let mut set = |name: &str, value: String| all.insert(format!("org.label-schema.{name}"), value);
    for (key, value) in &stage.header {
        set(&format!("usage.singularity.deffile.{key}"), value.clone());
    }
    if stage.help.is_some() {
        let path = format!("{META}/runscript.help");
        set("usage", path.clone());
        set("usage.singularity.runscript.help", path);
    }
    all.extend(stage.labels.clone());
    all
}
