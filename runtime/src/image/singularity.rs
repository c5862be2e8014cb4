//! What an image says of itself in `/.singularity.d`: written in Apptainer's layout and under its names, so that
//! either program finds it. The scripts are our own; the environment scripts are sourced in the order of their
//! names, the others are executed.

use std::collections::BTreeMap;

use super::oci::types::ContainerConfig;
use super::tree::Tree;
use crate::error::{Error, Result};

/// Where it is.
pub const META: &str = "/.singularity.d";
/// What the image's own environment scripts may be: written by `%post` under this name.
pub const LATE_ENVIRONMENT: &str = "/.singularity.d/env/91-environment.sh";
/// The configuration of an image from a registry, for images without a shell.
pub const OCI_CONFIG: &str = "/.singularity.d/oci-config.json";
/// Labels beyond this size are not an image author's work.
pub(super) const MAX_LABELS: u64 = 1 << 20;

const DIRECTORIES: &[&str] = &[
    "dev",
    "proc",
    "sys",
    "root",
    "home",
    "tmp",
    "var/tmp",
    "etc",
    ".singularity.d/libs",
    ".singularity.d/env",
];

const LINKS: &[(&str, &str)] = &[
    ("singularity", ".singularity.d/runscript"),
    ("environment", ".singularity.d/env/90-environment.sh"),
    (".exec", ".singularity.d/actions/exec"),
    (".run", ".singularity.d/actions/run"),
    (".shell", ".singularity.d/actions/shell"),
    (".test", ".singularity.d/actions/test"),
];

const BASE: &str = "#!/bin/sh
# Replaced by the scripts that follow; programs are found also where none of them says so.
PATH=${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}
export PATH
";
const APPS_BASE: &str = "#!/bin/sh
# Applications of the image, each in a directory below /scif/apps.
SCIF_APPS=/scif/apps SCIF_DATA=/scif/data
export SCIF_APPS SCIF_DATA
";
const LAST: &str = "#!/bin/sh
# Libraries that the runtime shows come after the image's own wishes.
LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}/.singularity.d/libs
PS1=${PS1:-'Apptainer> '}
export LD_LIBRARY_PATH PS1
";
const RUNTIME: &str = "#!/bin/sh
# What the caller asked to have before or behind the image's own PATH.
PATH=${SING_USER_DEFINED_PREPEND_PATH:+$SING_USER_DEFINED_PREPEND_PATH:}$PATH
PATH=$PATH${SING_USER_DEFINED_APPEND_PATH:+:$SING_USER_DEFINED_APPEND_PATH}
export PATH
";
/// Only old runtimes execute these; newer ones do the same by themselves.
const ACTIONS: &[(&str, &str)] = &[
    ("exec", "exec \"$@\""),
    ("run", "exec /.singularity.d/runscript \"$@\""),
    ("shell", "if [ -x /bin/bash ]; then exec /bin/bash --norc \"$@\"; fi\nexec /bin/sh \"$@\""),
    ("start", "exec /.singularity.d/startscript \"$@\""),
    ("test", "exec /.singularity.d/test \"$@\""),
];

/// Makes what every image has, where it is missing: mount points, links, the scripts that are always the same.
///
/// # Errors
/// What the file system says.
pub fn skeleton(tree: &Tree) -> Result<()> {
    for directory in DIRECTORIES {
        // A link that leads nowhere, as `home -> var/home`, is the image's own business.
        if let Err(e) = tree.make_dirs(directory.as_ref())
            && (directory.starts_with('.') || e.kind() != std::io::ErrorKind::NotFound)
        {
            return Err(super::tree::failed("make the directory", &tree.path().join(directory), &e));
        }
    }
    for (name, target) in LINKS {
        if !tree.exists(name) {
            tree.link(name, target)?;
        }
    }
    for file in ["etc/hosts", "etc/resolv.conf"] {
        tree.write_if_missing(file, 0o644, "")?;
    }
    for (name, text) in [
        ("01-base.sh", BASE),
        ("94-appsbase.sh", APPS_BASE),
        ("99-base.sh", LAST),
        ("99-runtimevars.sh", RUNTIME),
    ] {
        tree.write(format!("{META}/env/{name}"), 0o755, text)?;
    }
    for (name, text) in [("90-environment.sh", ""), ("95-apps.sh", "")] {
        tree.write_if_missing(format!("{META}/env/{name}"), 0o755, &format!("#!/bin/sh\n{text}"))?;
    }
    for (name, last) in ACTIONS {
        let text = format!(
            "#!/bin/sh\nfor script in /.singularity.d/env/*.sh; do\n    if [ -f \"$script\" ]; then . \"$script\"; fi\ndone\n{last}\n"
        );
        tree.write(format!("{META}/actions/{name}"), 0o755, text)?;
    }
    Ok(())
}

/// Writes what the configuration of an image from a registry says.
///
/// # Errors
/// What the file system says.
pub fn from_config(tree: &Tree, config: &ContainerConfig) -> Result<()> {
    skeleton(tree)?;
    tree.write(format!("{META}/env/10-docker2singularity.sh"), 0o755, environment(config))?;
    tree.write(format!("{META}/runscript"), 0o755, runscript(config))?;
    add_labels(tree, &config.labels.clone().unwrap_or_default())?;
    let text = serde_json::to_vec_pretty(config)
        .map_err(|e| Error::new("cannot write down the image's configuration").because(e))?;
    tree.write(OCI_CONFIG, 0o644, text)
}

/// Writes a script that is executed.
///
/// # Errors
/// What the file system says.
pub fn script(tree: &Tree, name: &str, shell: &str, text: &str) -> Result<()> {
    tree.write(format!("{META}/{name}"), 0o755, format!("#!{shell}\n\n{text}"))
}

/// The image's labels; none where the file is missing or is no list of labels.
///
/// # Errors
/// What the file system says.
pub fn labels(tree: &Tree) -> Result<BTreeMap<String, String>> {
    let found = tree.read(format!("{META}/labels.json"), MAX_LABELS)?;
    Ok(found.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default())
}

/// Adds labels to those of the image; one that is there already is replaced.
///
/// # Errors
/// What the file system says.
pub fn add_labels(tree: &Tree, new: &BTreeMap<String, String>) -> Result<()> {
    let mut all = labels(tree)?;
    all.extend(new.clone());
    let text =
        serde_json::to_vec_pretty(&all).map_err(|e| Error::new("cannot write the labels").because(e))?;
    tree.write(format!("{META}/labels.json"), 0o644, [text, b"\n".to_vec()].concat())
}

/// A word for a shell, whatever is in it.
#[must_use]
pub fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn words(list: Option<&Vec<String>>) -> String {
    list.into_iter().flatten().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

/// As docker runs it: the entrypoint, then the caller's arguments, or the image's where there are none.
fn runscript(config: &ContainerConfig) -> String {
    let entrypoint = words(config.entrypoint.as_ref());
    let cmd = words(config.cmd.as_ref());
    let default = if entrypoint.is_empty() && cmd.is_empty() { "/bin/sh".to_owned() } else { cmd };
    let mut text = "#!/bin/sh\n# From the Entrypoint and the Cmd of the image.\n".to_owned();
    if !default.is_empty() {
        text += &format!("if [ $# -eq 0 ]; then set -- {default}; fi\n");
    }
    if !entrypoint.is_empty() {
        text += &format!("set -- {entrypoint} \"$@\"\n");
    }
    text + "exec \"$@\"\n"
}

/// The image's variables. What the caller's environment says of one wins, but for the PATH.
fn environment(config: &ContainerConfig) -> String {
    let mut text = "#!/bin/sh\n# From the Env of the image.\n".to_owned();
    for variable in config.env.iter().flatten() {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        let fits = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !fits {
            continue;
        }
        if name == "PATH" {
            text += &format!("export PATH={}\n", quoted(value));
        } else {
            text += &format!("if [ -z \"${{{name}+x}}\" ]; then export {name}={}; fi\n", quoted(value));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(words: &[&str]) -> Option<Vec<String>> {
        Some(words.iter().map(|word| (*word).to_owned()).collect())
    }

    /// What a shell makes of a script.
    fn run(script: &str, args: &[&str]) -> String {
        let out =
            std::process::Command::new("sh").arg("-c").arg(script).arg("sh").args(args).output().unwrap();
        String::from_utf8(out.stdout).unwrap()
    }

    #[test]
    fn the_runscript_is_what_docker_would_run() {
        let both = ContainerConfig {
            entrypoint: list(&["printf", "%s|"]),
            cmd: list(&["it's", "$HOME", "a b"]),
            ..ContainerConfig::default()
        };
        assert_eq!(run(&runscript(&both), &[]), "it's|$HOME|a b|");
        assert_eq!(run(&runscript(&both), &["x", "y z"]), "x|y z|");
        let cmd = ContainerConfig { cmd: list(&["echo", "none"]), ..ContainerConfig::default() };
        assert_eq!(run(&runscript(&cmd), &[]), "none\n");
        assert_eq!(run(&runscript(&cmd), &["echo", "mine"]), "mine\n");
        let entry = ContainerConfig { entrypoint: list(&["echo"]), ..ContainerConfig::default() };
        assert_eq!(run(&runscript(&entry), &[]), "\n");
        let none = ContainerConfig::default();
        assert_eq!(run(&runscript(&none), &["echo", "given"]), "given\n");
        assert!(runscript(&none).contains("set -- /bin/sh;"));
    }

    #[test]
    fn variables_are_values_and_never_code() {
        let config = ContainerConfig {
            env: list(&[
                "PATH=/opt/bin:/bin:/usr/bin",
                "A=it's $(touch x) `touch y` \"z\"",
                "GIVEN=image",
                "bad name=1",
                "x;touch z=1",
                "EMPTY=",
                "NOVALUE",
            ]),
            ..ContainerConfig::default()
        };
        let text = environment(&config);
        let told = run(
            &format!(
                "GIVEN=caller; {text}\nprintf '%s|' \"$PATH\" \"$A\" \"$GIVEN\" \"${{EMPTY-unset}}\" \"${{NOVALUE-unset}}\""
            ),
            &[],
        );
        assert_eq!(told, "/opt/bin:/bin:/usr/bin|it's $(touch x) `touch y` \"z\"|caller|||");
        assert!(!text.contains("bad name") && !text.contains("touch z"));
    }

    #[test]
    fn a_hostile_image_cannot_have_the_host_written_to() {
        let top = tempfile::tempdir().unwrap();
        let (root, outside) = (top.path().join("root"), top.path().join("outside"));
        for dir in [&root, &outside] {
            std::fs::create_dir(dir).unwrap();
        }
        for name in [".singularity.d", "etc", "dev"] {
            std::os::unix::fs::symlink(&outside, root.join(name)).unwrap();
        }
        let tree = Tree::open(&root).unwrap();
        let error = from_config(&tree, &ContainerConfig::default()).unwrap_err().to_string();
        assert!(error.contains("it does not exist"), "{error}");
        std::fs::remove_file(root.join(".singularity.d")).unwrap();
        std::os::unix::fs::symlink("../../../../outside", root.join(".singularity.d")).unwrap();
        assert!(from_config(&tree, &ContainerConfig::default()).is_err());
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    }

    #[test]
    fn the_layout_is_complete_and_can_be_made_twice() {
        let root = tempfile::tempdir().unwrap();
        let tree = Tree::open(root.path()).unwrap();
        let labels = BTreeMap::from([("a".to_owned(), "1".to_owned())]);
        let config = ContainerConfig { labels: Some(labels), ..ContainerConfig::default() };
        for _ in 0..2 {
            from_config(&tree, &config).unwrap();
        }
        add_labels(&tree, &BTreeMap::from([("b".to_owned(), "2".to_owned())])).unwrap();
        assert_eq!(super::labels(&tree).unwrap().len(), 2);
        for path in ["singularity", "environment", ".exec", ".run", ".shell", "etc/hosts", "var/tmp", "proc"]
        {
            assert!(tree.exists(path), "{path}");
        }
        let image = crate::image::Image::open(root.path().to_str().unwrap()).unwrap();
        assert!(image.has_runscript && image.has_env_scripts && !image.has_startscript);
    }
}
