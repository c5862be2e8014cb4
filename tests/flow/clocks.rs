//! The clocks of what is brought back on a machine that runs for a shorter time than the one where it was saved.

use super::programs::Job;
use crate::env::{Env, Who};
use crate::http::{get, post};
use crate::need::need;
use crate::running::Outcome;

/// Started where both clocks are thirty days ahead.
fn ahead(engine: &str, who: Who) -> Outcome<Job> {
    let mut env = Env::new(who)?;
    env.days_ahead = Some(30);
    let mut job = Job::within(env, engine, &[], "any", &["python3", "/opt/subjects/clock.py", "PORT"])?;
    assert_eq!(post(job.port, "")?, "on time");
    job.save()?;
    job.env.ok(&["instance", "stop", "job"])?;
    job.env.days_ahead = None;
    Ok(job)
}

/// Whoever waits for a moment does not wait for thirty days, and sees no clock go back, the second time either.
fn goes_on(engine: &str, who: Who) -> Outcome<()> {
    let job = ahead(engine, who)?;
    job.start_again()?;
    for _ in 0..2 {
        assert_eq!(post(job.port, "")?, "on time");
        assert_eq!(get(job.port, "/")?, "never back");
        job.save_between_requests()?;
        job.restart()?;
    }
    assert_eq!(post(job.port, "")?, "on time");
    assert_eq!(get(job.port, "/")?, "never back");
    job.env.finish()
}

#[test]
fn clocks_go_on_with_dmtcp() {
    need!(root, image, userns, dmtcp);
    for who in [Who::Myself, Who::User] {
        goes_on("dmtcp", who).unwrap();
    }
}

#[test]
fn clocks_go_on_with_criu() {
    need!(root, image, userns, uidmap, criu);
    for who in [Who::Myself, Who::User, Who::Granted] {
        goes_on("criu", who).unwrap();
    }
}

#[test]
fn clocks_go_on_with_the_native_engine() {
    need!(root, image, userns, uidmap);
    for who in [Who::Myself, Who::User, Who::Granted] {
        goes_on("native", who).unwrap();
    }
}

/// Where that cannot be had, a clock that would go back is a refusal, unless it is accepted.
#[test]
fn clocks_may_go_back_only_when_that_is_accepted() {
    need!(root, image, userns);
    let job = ahead("native", Who::User).unwrap();
    let image = job.env.site.image("any").to_string_lossy().into_owned();
    let typed = ["instance", "start", "--restart", "job", &image, "job"];
    let refused = job.env.limited("time", &typed).unwrap();
    let told = job.env.told(&refused);
    insta::assert_snapshot!(told, @"
    exit 255
    FATAL:   the application's clock would go back
             because: it is 30 days ahead of this machine's, which runs for a shorter time, and who waits in it would wait that long
             because: a time namespace cannot be made: No space left on device
             hint:    restart it where time namespaces may be made (sysctl user.max_time_namespaces), or where the machine runs for longer; to go on all the same: --accept-loss=clocks
    ");
    let accepting = [&typed[..2], &["--accept-loss=clocks"], &typed[2..]].concat();
    let accepted = job.env.limited("time", &accepting).unwrap();
    assert_eq!(accepted.code, 0, "{}", accepted.err);
    assert!(accepted.err.contains("a clock of the application went back, as accepted"), "{}", accepted.err);
    assert_eq!(get(job.port, "/").unwrap(), "never back", "the thread has not waited until now");
    job.env.ok(&["instance", "stop", "job"]).unwrap();
    job.env.finish().unwrap();
}
