//! Apptainer's flags that this runtime does not have, so that a page of its manual is answered by name.

/// Flag and what is the case instead, as a sentence.
pub const REFUSED: &[(&str, &str)] = &[
    ("--add-caps", "The application never has capabilities beyond those of its user."),
    ("--allow-setuid", "Programs with the set-user-id bit never gain anything inside."),
    ("--apply-cgroups", "Limits are those of the batch system or of the surrounding cgroup."),
    (
        "--authfile",
        "Logins are found where docker, podman and skopeo keep them, or in the file that REGISTRY_AUTH_FILE names.",
    ),
    ("--blkio-weight", "Limits are those of the batch system or of the surrounding cgroup."),
    ("--blkio-weight-device", "Limits are those of the batch system or of the surrounding cgroup."),
    ("--boot", "An image's own init system is not started."),
    ("--compat", "Name the parts instead: --containall --no-home --writable-tmpfs."),
    ("--config-file", "Configuration is read from plugins.toml."),
    ("--cpu-shares", "Limits are those of the batch system or of the surrounding cgroup."),
    ("--cpus", "Limits are those of the batch system or of the surrounding cgroup."),
    ("--cpuset-cpus", "Limits are those of the batch system or of the surrounding cgroup."),
    ("--cpuset-mems", "Limits are those of the batch system or of the surrounding cgroup."),
    ("--device", "Devices are those of the host's /dev, or the small set of --contain."),
    ("--disable-cache", "What is fetched is kept until `stasis cache clean` removes it."),
    ("--dns", "Name servers are the host's."),
    (
        "--docker-host",
        "Images are not taken from a docker daemon; docker-archive: takes what `docker save` writes.",
    ),
    (
        "--docker-login",
        "Log in with docker, podman or skopeo, or set STASIS_DOCKER_USERNAME and STASIS_DOCKER_PASSWORD.",
    ),
    ("--drop-caps", "The application never has capabilities beyond those of its user."),
    ("--encrypt", "Images are not encrypted."),
    ("--fix-perms", "Files of an image can always be read and removed by their user."),
    ("--fusemount", "Mount the file system on the host and show it with --bind."),
    ("--ignore-fakeroot-command", "No fakeroot command is used."),
    ("--ignore-subuid", "--fakeroot maps one user and uses no subordinate ids."),
    ("--intel-hpu", "Libraries of devices are not put into the container."),
    ("--keep-privs", "The application never has capabilities beyond those of its user."),
    ("--memory", "Limits are those of the batch system or of the surrounding cgroup."),
    ("--memory-reservation", "Limits are those of the batch system or of the surrounding cgroup."),
    ("--memory-swap", "Limits are those of the batch system or of the surrounding cgroup."),
    ("--mksquashfs-args", "How a file is packed is said with --compression and --compression-level."),
    ("--netns-path", "A network is the host's, or an empty one with --net."),
    ("--network", "A network is the host's, or an empty one with --net."),
    ("--network-args", "A network is the host's, or an empty one with --net."),
    ("--no-cleanup", "What a build that failed has made is always removed."),
    ("--no-env", "Use --cleanenv and name what is wanted with --env."),
    ("--no-eval", "Values of --env and of --env-file are never evaluated, so there is nothing to turn off."),
    ("--no-https", "Set STASIS_NOHTTPS=1, or fetch the image before with `stasis pull --no-https`."),
    ("--no-init", "A container with its own process ids always has an init."),
    ("--no-mount", "Leave out the home with --no-home and most of the host with --contain."),
    (
        "--no-pid",
        "Only instances, --pid, --containall and containers that can be saved have their own process ids.",
    ),
    ("--no-privs", "The application never has capabilities beyond those of its user."),
    ("--no-tmp-sandbox", "Images that are fetched by name are unpacked once, into the cache."),
    ("--no-umask", "The file mode mask is the caller's."),
    ("--nvccli", "Use --nv, which needs no other program."),
    ("--oci", "There is one way to run a container."),
    ("--oom-kill-disable", "Limits are those of the batch system or of the surrounding cgroup."),
    ("--passphrase", "Encrypted images cannot be opened."),
    ("--pem-path", "Encrypted images cannot be opened."),
    ("--pid-file", "The pid of an instance is told by `instance list --json`."),
    ("--pids-limit", "Limits are those of the batch system or of the surrounding cgroup."),
    ("--runscript-timeout", "End it with timeout(1)."),
    ("--section", "A definition file is always carried out as a whole."),
    ("--security", "Security modules are left as they are on the host."),
    ("--sharens", "Containers share nothing; enter a running instance with instance://NAME."),
    ("--shell", "The shell is the image's /bin/bash, else its /bin/sh; run another one with exec."),
    ("--tmp-sandbox", "Images that are fetched by name are unpacked once, into the cache."),
    ("--underlay", "How missing mount points are made is decided by the kernel at hand."),
    ("--update", "Write into a directory with `exec --writable`, or build it anew."),
    ("--vm", "There are no virtual machines."),
    ("--warn-unused-build-args", "A value that nothing asks for is always an error."),
];

/// Apptainer's commands that this runtime does not have, and what is the case instead, as a sentence.
const COMMANDS: &[(&str, &str)] = &[
    ("config", "Configuration is read from plugins.toml."),
    ("delete", "Images in libraries are not managed."),
    ("key", "Signatures are neither made nor checked."),
    ("keyserver", "Signatures are neither made nor checked."),
    ("oci", "There is one way to run a container."),
    ("overlay", "An overlay is a directory: --overlay DIR."),
    ("plugin", "The engines that save are listed by `stasis backend list`."),
    ("push", "Copy the file, or push images of registries with skopeo."),
    ("registry", "Log in with docker, podman or skopeo."),
    ("remote", "Images come from registries by their name, as docker://HOST/NAME."),
    ("run-help", "The help of an image is shown by `stasis inspect --helpfile IMAGE`."),
    ("search", "Images in libraries are not searched for."),
    ("sif", "What an image holds is shown by `stasis inspect --all IMAGE`."),
    ("sign", "Signatures are neither made nor checked."),
    ("test", "The test of an image is run by `stasis exec IMAGE /.singularity.d/test`."),
    ("verify", "Signatures are neither made nor checked; saved states are, by `stasis checkpoint verify`."),
    ("version", "It is told by `stasis --version`."),
];

/// The message for a word that is a command of Apptainer's and not of ours.
#[must_use]
pub fn refused_command(word: &str) -> Option<String> {
    let (name, sentence) = COMMANDS.iter().find(|(name, _)| *name == word)?;
    Some(format!("{name} is a command of Apptainer's that stasis does not have. {sentence}"))
}

/// The message for an argument that is a flag of Apptainer's and not of ours, `--flag` or `--flag=value`.
#[must_use]
pub fn refused(arg: &str) -> Option<String> {
    let flag = arg.split_once('=').map_or(arg, |(flag, _)| flag);
    let (name, sentence) = REFUSED.iter().find(|(name, _)| *name == flag)?;
    Some(format!("{name} is a flag of Apptainer's that stasis does not have. {sentence}"))
}
