//! Hosts that do not let users make containers.

use super::*;
use crate::need::need;
use crate::running::Running;
use std::process::Command;

#[test]
fn user_namespaces_are_switched_off() {
    need!(root, image, userns);
    let env = Env::new(Who::User).unwrap();
    let typed = env.command(&["exec", &image(&env, "small"), "true"]);
    let mut command = Command::new("python3");
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap());
    command.envs(typed.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/subjects/nouserns.py");
    command.arg(script).arg(env.uid().to_string()).arg(typed.get_program()).args(typed.get_args());
    let run = Running::start(command, false).unwrap().wait().unwrap();
    insta::assert_snapshot!(env.told(&run), @"
    exit 255
    FATAL:   cannot make the container's namespaces
             because: No space left on device
             hint:    user namespaces are switched off here; the administrator allows them with `sysctl user.max_user_namespaces=15000`
    ");
    env.finish().unwrap();
}
