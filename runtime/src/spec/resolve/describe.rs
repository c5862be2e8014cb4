//! A spec in words, for `--dry-run`.

use std::fmt::Write as _;
use std::path::Path;

use stasis_plugin_api::plan::{Helper, IdMap, Needs, StdioKind};

use crate::spec::{ContainerSpec, EngineSpec, IdSpec, Mount, RestartStep, RootMode, RootWrite};

/// What will be done, in order, one step per line.
#[must_use]
pub fn describe(spec: &ContainerSpec) -> String {
    let mut out = Lines::default();
    out.line(format!("container {} ({} {})", word(&spec.name), spec.action, word(&spec.image)));
    out.line(format!("  root        {}{}", path(&spec.root.directory), root_mode(spec.root.mode)));
    out.line(format!("  changes     {}", root_write(&spec.root.write)));
    out.line(format!("  namespaces  {}", namespaces(spec)));
    out.line(format!("  user        {}", ids(&spec.ids, spec.namespaces.user)));
    if let Some(name) = &spec.hostname {
        out.line(format!("  host name   {}", word(name)));
    }
    out.line("mounts".to_owned());
    for mount in &spec.mounts {
        out.line(format!("  {}", one_mount(mount)));
    }
    if let Some(engine) = &spec.engine {
        describe_engine(&mut out, engine);
    }
    let (init, stdio) =
        (if spec.init { "started by the container's init" } else { "executed directly" }, spec.stdio);
    out.line(format!("process, {init}, {}", stdio_kind(stdio)));
    let restarted = spec.engine.as_ref().is_some_and(|engine| engine.restart.is_some());
    if spec.process.source_env && !restarted {
        out.line("  first       the image's /.singularity.d/env/*.sh".to_owned());
    }
    if spec.process.argv.is_empty() {
        out.line("  command     none: the container waits for commands".to_owned());
    } else {
        out.line(format!("  command     {}", words(&spec.process.argv)));
    }
    let cwd: Vec<String> = spec.process.cwd.iter().map(|dir| path(dir)).collect();
    out.line(format!("  directory   {}", cwd.join(", else ")));
    out.line(format!("  umask       {:04o}", spec.process.umask));
    for (name, value) in &spec.process.env {
        out.line(format!("  env         {name}={}", word(value)));
    }
    out.0
}

#[derive(Default)]
struct Lines(String);

impl Lines {
    fn line(&mut self, text: String) {
        self.0.push_str(&text);
        self.0.push('\n');
    }
}

fn describe_engine(out: &mut Lines, engine: &EngineSpec) {
    out.line(format!("engine {}", word(&engine.backend)));
    out.line(format!("  bind        {} on /.stasis/capture", path(&engine.staging)));
    if let Some(generation) = &engine.generation {
        out.line(format!("  bind        {} on /.stasis/image, read-only", path(generation)));
    }
    describe_needs(out, &engine.needs);
    for cover in &engine.cover {
        out.line(format!("  cover       {}", path(cover)));
    }
    if !engine.wrap.is_empty() {
        out.line(format!("  before it   {}", words(&engine.wrap)));
    }
    match &engine.restart {
        Some(RestartStep::Exec { argv }) => out.line(format!("  instead     {}", words(argv))),
        Some(RestartStep::Rebuild { helper, .. }) => {
            out.line(format!("  rebuild     {}", command(helper)));
            if let Some(early) = helper.early.as_ref().filter(|_| helper.descriptors.is_empty()) {
                let argv = words(&early.argv);
                out.line(format!("  or early    {}: {argv}, with the host's root", word(&helper.name)));
            }
        }
        None => {}
    }
}

fn describe_needs(out: &mut Lines, needs: &Needs) {
    for bind in &needs.binds {
        let ro = if bind.writable { "" } else { ", read-only" };
        out.line(format!("  bind        {} on {}{ro}", path(&bind.source), path(&bind.target)));
    }
    for file in &needs.files {
        out.line(format!("  file        {} ({:04o})", path(&file.path), file.mode));
    }
    for dir in &needs.directories {
        let tmpfs = dir.tmpfs.map(|size| format!(", tmpfs of {size} bytes")).unwrap_or_default();
        out.line(format!("  directory   {} ({:04o}{tmpfs})", path(&dir.path), dir.mode));
    }
    for helper in &needs.helpers {
        out.line(format!("  helper      {}", command(helper)));
    }
    for rule in &needs.seccomp {
        out.line(format!("  seccomp     system call {} answers errno {}", rule.syscall, rule.errno));
    }
    for name in &needs.env_remove {
        out.line(format!("  unset       {}", word(name)));
    }
    for (name, value) in &needs.env {
        out.line(format!("  set         {name}={}", word(value)));
    }
    if let Some(pid) = needs.first_pid {
        out.line(format!("  first pid   {pid}"));
    }
}

/// As init starts it when its turn has come.
fn command(helper: &Helper) -> String {
    let name = word(&helper.name);
    match &helper.secluded {
        Some(secluded) => {
            format!("{name}: {}, with the root {}", words(&secluded.argv), path(&secluded.root))
        }
        None => format!("{name}: {}", words(&helper.argv)),
    }
}

fn one_mount(mount: &Mount) -> String {
    match mount {
        Mount::Bind { source, target, writable, optional, .. } => {
            let mut text = format!("bind        {}", path(source));
            if source != target {
                let _ = write!(text, " on {}", path(target));
            }
            text.push_str(if *writable { "" } else { ", read-only" });
            text.push_str(if *optional { ", if possible" } else { "" });
            text
        }
        Mount::Proc => "proc        /proc of its own".to_owned(),
        Mount::MinimalDev => "dev         /dev of its own".to_owned(),
        Mount::Devpts => "devpts      /dev/pts of its own".to_owned(),
        Mount::Tmpfs { target, size, mode } => {
            let size = size.map(|size| format!(", {size} bytes")).unwrap_or_default();
            format!("tmpfs       {} ({mode:04o}{size})", path(target))
        }
        Mount::File { target, content, optional } => {
            let optional = if *optional { ", if possible" } else { "" };
            format!("file        {} ({} bytes{optional})", path(target), content.len())
        }
    }
}

fn root_mode(mode: RootMode) -> &'static str {
    match mode {
        RootMode::Auto => "",
        RootMode::Plain => ", as it is",
        RootMode::Overlay => ", under an overlay",
        RootMode::Skeleton => ", entry by entry",
    }
}

fn root_write(write: &RootWrite) -> String {
    match write {
        RootWrite::ReadOnly => "not allowed".to_owned(),
        RootWrite::Image => "go into the image".to_owned(),
        RootWrite::Tmpfs => "go into memory, and are lost".to_owned(),
        RootWrite::Overlay(dir) => format!("go into {}", path(dir)),
    }
}

fn namespaces(spec: &ContainerSpec) -> String {
    let ns = &spec.namespaces;
    let all = [
        (ns.user, "user"),
        (true, "mount"),
        (ns.pid, "pid"),
        (ns.ipc, "ipc"),
        (ns.uts, "uts"),
        (ns.net, "net"),
        (ns.time, "time"),
    ];
    all.into_iter().filter(|(new, _)| *new).map(|(_, name)| name).collect::<Vec<_>>().join(" ")
}

fn ids(ids: &IdSpec, user_namespace: bool) -> String {
    let map = match ids.map {
        _ if !user_namespace => "no mapping",
        IdMap::Keep => "kept",
        IdMap::KeepAndZero => "kept, with root beside it",
        IdMap::Root => "root inside",
    };
    format!("{}:{} is {}:{} inside ({map})", ids.host_uid, ids.host_gid, ids.uid, ids.gid)
}

fn stdio_kind(kind: StdioKind) -> &'static str {
    match kind {
        StdioKind::Inherit => "with the caller's streams",
        StdioKind::Pty => "on a terminal of its own",
        StdioKind::File => "writing to log files",
    }
}

fn path(path: &Path) -> String {
    word(&path.to_string_lossy())
}

fn words(list: &[String]) -> String {
    list.iter().map(|item| word(item)).collect::<Vec<_>>().join(" ")
}

/// As it is when it is harmless, else quoted and escaped: it may come from anywhere and goes to a terminal.
fn word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text.to_owned() } else { format!("{text:?}") }
}
