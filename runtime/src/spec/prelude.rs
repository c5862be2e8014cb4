//! What is executed in the end: the application's command with everything that stands before it, and the
//! environment for it. The image's environment scripts are shell, so the image's own shell has to source them.

use std::collections::BTreeMap;

use super::env::{APPEND, PREPEND};
use super::{ContainerSpec, EngineSpec, RestartStep};

/// For any POSIX shell, with built-in commands only: an image may hold nothing but a shell.
///
/// `$1` is the program to look for, then `+NAME` to set to what `STASIS_SET_NAME` holds, `-NAME` or `-PREFIX*`
/// to unset, `NAME=VALUE` to set, `--`, the command. The user's values are not among the arguments, because
/// everybody on the host can read those.
/// Scripts are sourced in functions, so that one that changes its arguments does not change ours; a shell ends
/// itself on a mistake in a script, which only the trap can tell of.
const SCRIPT: &str = r#"_stasis_source() { . "$1"; }
_stasis_forget() {
  _stasis_ifs=$IFS
  IFS='
'
  set -f
  for _stasis_line in $(export -p); do
    case $_stasis_line in
    "export $1"*)
      _stasis_name=${_stasis_line#export }
      _stasis_name=${_stasis_name%%=*}
      case $_stasis_name in *[!A-Za-z0-9_]*) ;; *) unset "$_stasis_name" ;; esac ;;
    esac
  done
  set +f
  IFS=$_stasis_ifs
}
_stasis_find() {
  case $1 in
  */*)
    [ -f "$1" ] && [ -x "$1" ] && return 0
    if [ -d "$1" ]; then printf 'FATAL:   "%s" is a directory\n' "$1" >&2
    elif [ -e "$1" ]; then printf 'FATAL:   "%s": permission denied\n' "$1" >&2
    else printf 'FATAL:   "%s": no such file\n' "$1" >&2
    fi
    exit 255 ;;
  esac
  _stasis_ifs=$IFS
  IFS=:
  set -f
  for _stasis_dir in $PATH; do
    if [ -f "${_stasis_dir:-.}/$1" ] && [ -x "${_stasis_dir:-.}/$1" ]; then
      set +f
      IFS=$_stasis_ifs
      return 0
    fi
  done
  printf 'FATAL:   "%s": executable file not found in $PATH\n' "$1" >&2
  exit 255
}
trap 'printf "FATAL:   the image environment script %s ended the shell\n" "$_stasis_file" >&2; exit 255' EXIT
for _stasis_file in /.singularity.d/env/*.sh "/scif/apps/${STASIS_APPNAME:-}/scif/env/"*.sh; do
  if [ -f "$_stasis_file" ] && [ -r "$_stasis_file" ]; then _stasis_source "$_stasis_file"; fi
  set +aefu
done
trap - EXIT
unset IFS
_stasis_program=$1
shift
while [ "$1" != -- ]; do
  case $1 in
  -*\*) _stasis_name=${1%\*}; _stasis_forget "${_stasis_name#-}" ;;
  -*) unset "${1#-}" ;;
  +*) eval "export ${1#+}=\"\$STASIS_SET_${1#+}\"; unset STASIS_SET_${1#+}" ;;
  *) export "$1" ;;
  esac
  shift
done
shift
if [ -n "${STASIS_PREPEND_PATH:-}" ]; then PATH=$STASIS_PREPEND_PATH${PATH:+:$PATH}; fi
if [ -n "${STASIS_APPEND_PATH:-}" ]; then PATH=${PATH:+$PATH:}$STASIS_APPEND_PATH; fi
unset STASIS_PREPEND_PATH STASIS_APPEND_PATH
export PATH
_stasis_find "$_stasis_program"
exec "$@"
"#;

/// Where a value waits until the image's scripts are through.
const SET: &str = "STASIS_SET_";

/// The final argument vector. Empty when nothing is to be executed: an instance whose image has no start
/// script, or a tree that an engine rebuilds.
#[must_use]
pub fn command(spec: &ContainerSpec) -> Vec<String> {
    match restart(spec) {
        Some(RestartStep::Exec { argv }) => return argv.clone(),
        Some(RestartStep::Rebuild { .. }) => return Vec::new(),
        None => {}
    }
    let process = &spec.process;
    let Some(program) = process.argv.first() else { return Vec::new() };
    let wrap = spec.engine.as_ref().map(|engine| engine.wrap.as_slice()).unwrap_or_default();
    let plain = wrap.iter().chain(&process.argv).cloned();
    if !process.source_env {
        return plain.collect();
    }
    let mut argv: Vec<String> =
        ["/bin/sh", "-c", SCRIPT, "stasis", program].into_iter().map(str::to_owned).collect();
    argv.extend(process.env_after.keys().map(|name| format!("+{name}")));
    if let Some(engine) = &spec.engine {
        // First out, then in: an engine may want one name of a family that it takes away.
        argv.extend(engine.needs.env_remove.iter().map(|pattern| format!("-{pattern}")));
        argv.extend(engine.needs.env.iter().map(|(name, value)| format!("{name}={value}")));
    }
    argv.push("--".to_owned());
    argv.extend(plain);
    argv
}

/// The environment that goes with [`command`]. Where the image's scripts are sourced, the engine's part of it
/// comes after them and is not in here.
#[must_use]
pub fn environment(spec: &ContainerSpec) -> BTreeMap<String, String> {
    let mut env = spec.process.env.clone();
    let sourced = spec.process.source_env && restart(spec).is_none();
    if sourced {
        let kept = spec.process.env_after.iter();
        env.extend(kept.map(|(name, value)| (format!("{SET}{name}"), value.clone())));
    } else {
        env.remove(PREPEND);
        env.remove(APPEND);
        if let Some(engine) = &spec.engine {
            apply_engine(&mut env, engine);
        }
    }
    env
}

fn restart(spec: &ContainerSpec) -> Option<&RestartStep> {
    spec.engine.as_ref()?.restart.as_ref()
}

fn apply_engine(env: &mut BTreeMap<String, String>, engine: &EngineSpec) {
    for pattern in &engine.needs.env_remove {
        match pattern.strip_suffix('*') {
            Some(prefix) => env.retain(|name, _| !name.starts_with(prefix)),
            None => drop(env.remove(pattern)),
        }
    }
    env.extend(engine.needs.env.clone());
}

#[cfg(test)]
mod tests;
