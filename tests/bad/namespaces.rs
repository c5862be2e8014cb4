//! Hosts that do not let users make containers.

use super::*;
use crate::need::need;

#[test]
fn user_namespaces_are_switched_off() {
    need!(root, image, userns);
    let env = Env::new(Who::User).unwrap();
    let run = env.limited("user", &["exec", &image(&env, "small"), "true"]).unwrap();
    insta::assert_snapshot!(env.told(&run), @"
    exit 255
    FATAL:   cannot make the container's namespaces
             because: No space left on device
             hint:    user namespaces are switched off here; the administrator allows them with `sysctl user.max_user_namespaces=15000`
    ");
    env.finish().unwrap();
}
