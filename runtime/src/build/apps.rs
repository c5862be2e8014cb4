//! `%app...`: several applications in one image, each in a directory below `/scif/apps`.

use std::collections::BTreeMap;
use std::path::Path;

use super::container::{self, Facts};
use super::definition::{App, Copy, Files, Script, Stage};
use super::{Work, files};
use crate::error::{Error, Result};
use crate::image::singularity::{META, quoted};
use crate::image::tree::Tree;
use crate::spec::RootWrite;

/// Copies `%appfiles`, relative to the application's directory.
pub(super) fn files(stage: &Stage, tree: &Tree, work: &Work<'_>, definition: &Path) -> Result<()> {
    for (name, app) in &stage.apps {
        for directory in ["apps/{}/bin", "apps/{}/lib", "apps/{}/scif/env", "data/{}/input", "data/{}/output"]
        {
            tree.directory(format!("scif/{}", directory.replace("{}", name)))?;
        }
        let inside = |copy: &Copy| {
            let last = Path::new(&copy.from).file_name().map(|name| name.to_string_lossy().into_owned());
            let to = copy.to.clone().or(last).unwrap_or_default();
            Copy {
                line: copy.line,
                from: copy.from.clone(),
                to: Some(format!("scif/apps/{name}/{}", to.trim_start_matches('/'))),
            }
        };
        for section in &app.files {
            let copies = section.copies.iter().map(inside).collect();
            let section = Files { from: section.from.clone(), line: section.line, copies };
            files::copy(&section, tree, work, definition)?;
        }
    }
    Ok(())
}

/// Runs `%appinstall` and writes what the applications say of themselves.
pub(super) fn install(stage: &Stage, tree: &Tree, facts: &Facts, work: &Work<'_>) -> Result<()> {
    if stage.apps.is_empty() {
        return Ok(());
    }
    let mut all = "#!/bin/sh\n# The places of each application.\n".to_owned();
    for (name, app) in &stage.apps {
        describe(name, app, tree)?;
        all += &variables(name);
    }
    tree.write(format!("{META}/env/95-apps.sh"), 0o755, all)?;
    for (name, app) in &stage.apps {
        let Some(script) = &app.install else { continue };
        work.watch.info(&format!("Installing app {name}"));
        let text = format!("cd /scif/apps/{name}\n. ./scif/env/01-base.sh\n{}", script.text);
        let script = Script { text, shell: script.shell.clone() };
        let what = format!("%appinstall {name}");
        container::run(&what, &script, tree, RootWrite::Image, facts, work.options)?;
    }
    Ok(())
}

/// A name of an application as a part of a variable's.
fn word(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

fn variables(name: &str) -> String {
    let (word, at) = (word(name), quoted(&format!("/scif/apps/{name}")));
    format!(
        "SCIF_APPROOT_{word}={at} SCIF_APPBIN_{word}={at}/bin SCIF_APPLIB_{word}={at}/lib\n\
         SCIF_APPDATA_{word}={}\n\
         export SCIF_APPROOT_{word} SCIF_APPBIN_{word} SCIF_APPLIB_{word} SCIF_APPDATA_{word}\n",
        quoted(&format!("/scif/data/{name}"))
    )
}

fn describe(name: &str, app: &App, tree: &Tree) -> Result<()> {
    let at = format!("scif/apps/{name}/scif");
    let root = quoted(&format!("/scif/apps/{name}"));
    let base = format!(
        "#!/bin/sh\nSCIF_APPNAME={} SCIF_APPROOT={root} SCIF_APPDATA={}\n\
         PATH={root}/bin:$PATH LD_LIBRARY_PATH={root}/lib${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}\n\
         export SCIF_APPNAME SCIF_APPROOT SCIF_APPDATA PATH LD_LIBRARY_PATH\n",
        quoted(name),
        quoted(&format!("/scif/data/{name}"))
    );
    tree.write(format!("{at}/env/01-base.sh"), 0o755, base)?;
    if let Some(text) = &app.environment {
        tree.write(format!("{at}/env/90-environment.sh"), 0o755, format!("#!/bin/sh\n\n{text}"))?;
    }
    if let Some(text) = &app.help {
        tree.write(format!("{at}/runscript.help"), 0o644, text)?;
    }
    for (file, script) in [("runscript", &app.run), ("startscript", &app.start), ("test", &app.test)] {
        if let Some(script) = script {
            let shell = script.shell.as_deref().unwrap_or("/bin/sh");
            tree.write(format!("{at}/{file}"), 0o755, format!("#!{shell}\n\n{}", script.text))?;
        }
    }
    let labels: &BTreeMap<String, String> = &app.labels;
    let text =
        serde_json::to_vec_pretty(labels).map_err(|e| Error::new("cannot write the labels").because(e))?;
    tree.write(format!("{at}/labels.json"), 0o644, text)
}
