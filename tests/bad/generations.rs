//! Generations that were cut short or have a flipped bit, and locks on a checkpoint.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use nix::mount::{MsFlags, mount};

use super::*;
use crate::need::need;

/// The largest file of a generation that it shares with no other: the image of a process, or what was changed in it.
fn largest(env: &Env, generation: &str) -> Outcome<PathBuf> {
    let mut files: Vec<(u64, PathBuf)> = Vec::new();
    for path in crate::tree::files_below(&store(env, "kept").join("generations").join(generation))? {
        let about = path.metadata()?;
        if about.nlink() == 1 {
            files.push((about.len(), path));
        }
    }
    let largest = files.into_iter().max().map(|(_, path)| path);
    largest.ok_or_else(|| format!("generation {generation} is empty").into())
}

fn told(env: &Env, words: &[&str]) -> String {
    let small = image(env, "small");
    let words: Vec<&str> =
        words.iter().map(|word| if *word == "IMAGE" { small.as_str() } else { *word }).collect();
    env.fails(&words).unwrap_or_else(|why| format!("{why}"))
}

const RESTART: [&str; 6] = ["instance", "start", "--restart", "kept", "IMAGE", "one"];

#[test]
fn a_flipped_bit_a_cut_and_a_missing_file() {
    need!(image, userns, dmtcp);
    damaged("dmtcp").unwrap();
}

#[test]
fn a_flipped_bit_a_cut_and_a_missing_file_with_criu() {
    need!(image, userns, criu);
    damaged("criu").unwrap();
}

/// Memory that comes page by page is compared behind the start: a difference ends the application, and until then
/// nothing is saved.
#[test]
fn a_flipped_bit_that_is_found_behind_the_start() {
    need!(image, userns);
    let env = started_with("native", Who::User).unwrap();
    env.ok(&["checkpoint", "instance", "--stop", "one"]).unwrap();
    let file = find(&store(&env, "kept"), "pages-100.img").into_iter().next().unwrap();
    let whole = fs::read(&file).unwrap();
    let start = |more: &str, reference: &str| {
        let words = ["instance start --backend-option restart=map", more, "--restart", reference, "- one"];
        words.join(" ").split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let ok = |words: &[String]| env.ok(&words.iter().map(String::as_str).collect::<Vec<_>>()).map(drop);
    ok(&start("", "kept")).unwrap();
    env.ok(&["checkpoint", "instance", "--stop", "one"]).unwrap();
    assert_eq!(env.newest("kept").unwrap()["generation"], 2);
    let mut damaged = whole.clone();
    // Where nothing of the program runs: it is found by looking, not by an accident.
    *damaged.last_mut().unwrap() ^= 1;
    fs::write(&file, &damaged).unwrap();
    let name = env.plain(&file.to_string_lossy());
    let told = |words: &[&str]| env.fails(words).unwrap().replace(&name, "$FILE");
    let before = start("--verify before", "kept@1");
    insta::assert_snapshot!(told(&before.iter().map(String::as_str).collect::<Vec<_>>()), @"
    exit 255
    FATAL:   $FILE is damaged: its content is not what was saved
             hint:    choose an older generation, or delete what is damaged; nothing was changed
    ");
    ok(&start("", "kept@1")).unwrap();
    all_ended(&env).unwrap();
    insta::assert_snapshot!(told(&["checkpoint", "instance", "one"]), @r#"
    exit 255
    FATAL:   instance "one" has ended (failed: generation 1 was brought back, and $FILE is damaged: its content is not what was saved)
             hint:    the last state saved is generation 2 of checkpoint "kept"; bring it back with --restart kept
    "#);
    env.ok(&["instance", "stop", "one"]).unwrap();
    // Before is the rule where everything is read at once.
    insta::assert_snapshot!(told(&["instance", "start", "--restart", "kept@1", "-", "one"]), @"
    exit 255
    FATAL:   $FILE is damaged: its content is not what was saved
             hint:    choose an older generation, or delete what is damaged; nothing was changed
    ");
    env.ok(&["instance", "start", "--verify", "behind", "--restart", "kept@1", "-", "one"]).unwrap();
    let told = told(&["checkpoint", "instance", "one"]);
    assert!(told.contains("$FILE is damaged: its content is not what was saved"), "{told}");
    assert_eq!(env.newest("kept").unwrap()["generation"], 2, "nothing was saved of what is damaged");
    env.finish().unwrap();
}

/// What is told of a job is told of what was saved, also where it has nothing left to do.
#[test]
fn a_flipped_bit_in_a_job_that_ends_at_once() {
    need!(image, userns);
    let env = Env::new(Who::User).unwrap();
    let bind = format!("{}:/srv", env.make_dir("host").unwrap().display());
    let script = "import os, sys, time\nheld = os.urandom(64 << 20)\nprint('up', flush=True)\n\
                  while not os.path.exists('/srv/end'):\n    time.sleep(0.01)\n\
                  sys.exit(int(open('/srv/end').read()))";
    let any = image(&env, "any");
    let run =
        ["run", "--backend", "native", "--checkpoint", "kept", "-B", &bind, &any, "python3", "-c", script];
    let job = crate::running::Running::start(env.command(&run), false).unwrap();
    job.wait_for("up").unwrap();
    let listed = env.ok(&["instance", "list", "--json"]).unwrap().out;
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    env.ok(&["checkpoint", "instance", "--stop", listed["instances"][0]["instance"].as_str().unwrap()])
        .unwrap();
    job.wait().unwrap();
    let file = find(&store(&env, "kept"), "pages-100.img").into_iter().next().unwrap();
    let name = env.plain(&file.to_string_lossy());
    for how in ["restart=map", "restart=copy"] {
        let again = ["run", "--backend-option", how, "--verify", "behind", "--restart", "kept", &any];
        for code in ["0", "3"] {
            env.write("host/end", code).unwrap();
            let run = env.stasis(&again).unwrap();
            assert_eq!(run.code.to_string(), code, "{}", run.err);
        }
        let whole = fs::read(&file).unwrap();
        let mut damaged = whole.clone();
        *damaged.last_mut().unwrap() ^= 1;
        fs::write(&file, &damaged).unwrap();
        let told = placeless(&env.fails(&again).unwrap().replace(&name, "$FILE"));
        // Beside the line that tells what is brought back, with its age.
        let told: Vec<&str> = told.lines().filter(|line| !line.starts_with("INFO:")).collect();
        insta::allow_duplicates! { insta::assert_snapshot!(told.join("\n"), @"
        exit 255
        FATAL:   generation 1 was brought back, and $FILE is damaged: its content is not what was saved
                 hint:    choose an older generation; what the application did since is of no use
        "); }
        fs::write(&file, &whole).unwrap();
    }
    env.finish().unwrap();
}

#[test]
fn a_flipped_bit_a_cut_and_a_missing_file_with_the_native_engine() {
    need!(image, userns);
    damaged("native").unwrap();
}

/// Without the place of a damage, which only large files have.
fn placeless(text: &str) -> String {
    let cut = |line: &str| line.split(", first between bytes ").next().unwrap_or_default().to_owned();
    text.lines().map(cut).collect::<Vec<_>>().join("\n")
}

fn damaged(engine: &str) -> Outcome<()> {
    let env = started_with(engine, Who::User)?;
    env.ok(&["checkpoint", "instance", "one"])?;
    env.ok(&["checkpoint", "instance", "--stop", "one"])?;
    let file = largest(&env, "000002")?;
    let (whole, name) = (fs::read(&file)?, env.plain(&file.to_string_lossy()));
    let told = |words: &[&str]| placeless(&told(&env, words).replace(&name, "$FILE"));
    env.ok(&["checkpoint", "verify", "kept"])?;
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    fs::write(&file, &damaged)?;
    insta::allow_duplicates! { insta::assert_snapshot!(told(&RESTART), @"
    exit 255
    FATAL:   $FILE is damaged: its content is not what was saved
             hint:    choose an older generation, or delete what is damaged; nothing was changed
    "); }
    insta::allow_duplicates! { insta::assert_snapshot!(told(&["checkpoint", "verify", "kept"]), @r#"
    exit 255
    INFO:    Generation 1 of checkpoint "kept" is whole.
    ERROR:   $FILE is damaged: its content is not what was saved
             hint:    choose an older generation, or delete what is damaged; nothing was changed
    FATAL:   1 of N generations of checkpoint "kept" cannot be brought back
    "#); }
    fs::write(&file, &whole[..whole.len() - 4096])?;
    insta::allow_duplicates! { insta::assert_snapshot!(told(&RESTART), @"
    exit 255
    FATAL:   $FILE is damaged: cut short: it has N of N bytes
             hint:    choose an older generation, or delete what is damaged; nothing was changed
    "); }
    fs::remove_file(&file)?;
    insta::allow_duplicates! { insta::assert_snapshot!(told(&RESTART), @"
    exit 255
    FATAL:   $FILE is damaged: it is missing
             hint:    choose an older generation, or delete what is damaged; nothing was changed
    "); }
    let manifest = file.ancestors().find(|dir| dir.join("manifest.json").exists()).ok_or("no manifest")?;
    fs::write(manifest.join("manifest.json"), "{\"format\": 1, ")?;
    insta::allow_duplicates! { insta::assert_snapshot!(told(&RESTART), @"
    exit 255
    FATAL:   $DIR/data/checkpoints/kept/generations/000002/manifest.json is damaged: EOF while parsing a value at line 1 column 14
             hint:    choose an older generation, or delete what is damaged; nothing was changed
    "); }
    // The one before it is untouched.
    env.ok(&["instance", "start", "--restart", "kept@1", "-", "one"])?;
    env.finish()
}

#[test]
fn a_capture_cut_short_leaves_the_last_one() {
    need!(image, userns, dmtcp);
    let env = saved(Who::User).unwrap();
    // As a machine leaves it that loses its power between two files.
    let partial = store(&env, "kept").join("generations/000002.partial");
    fs::create_dir(&partial).unwrap();
    fs::write(partial.join("half"), "half").unwrap();
    crate::env::own(&partial, env.uid()).unwrap();
    env.ok(&["instance", "start", "--restart", "kept", "-", "one"]).unwrap();
    env.ok(&["checkpoint", "instance", "one"]).unwrap();
    let list = env.ok(&["checkpoint", "show", "kept"]).unwrap().out;
    assert!(!list.contains("partial"), "{list}");
    env.finish().unwrap();
}

#[test]
fn what_is_in_use_is_not_deleted_and_has_one_writer() {
    need!(image, userns, dmtcp);
    let env = started(Who::User).unwrap();
    let small = image(&env, "small");
    env.ok(&["checkpoint", "instance", "one"]).unwrap();
    insta::assert_snapshot!(told(&env, &["checkpoint", "delete", "kept"]), @r#"
    exit 255
    FATAL:   checkpoint "kept" is in use by instance "one" (process N, since TIME)
             hint:    stop it first: stasis instance stop one
    "#);
    let second = ["instance", "start", "--backend", "dmtcp", "--checkpoint", "kept", &small, "two", IDLE];
    insta::assert_snapshot!(told(&env, &second), @r#"
    exit 255
    FATAL:   checkpoint "kept" is in use by instance "one" (process N, since TIME)
             hint:    stop it first: stasis instance stop one
    "#);
    let second = ["instance", "start", "--restart", "kept", &small, "two"];
    insta::assert_snapshot!(told(&env, &second), @r#"
    exit 255
    FATAL:   checkpoint "kept" is in use by instance "one" (process N, since TIME)
             hint:    stop it first: stasis instance stop one
    "#);
    // The first one is still the one that is saved.
    env.ok(&["checkpoint", "instance", "one"]).unwrap();
    env.ok(&["instance", "stop", "one"]).unwrap();
    env.ok(&["checkpoint", "delete", "kept"]).unwrap();
    env.finish().unwrap();
}

#[test]
fn hostile_links_in_the_store_lead_nowhere() {
    need!(image, userns, dmtcp);
    let env = saved(Who::User).unwrap();
    let outside = env.make_dir("outside").unwrap();
    fs::write(outside.join("precious"), "x").unwrap();
    std::os::unix::fs::symlink(&outside, store(&env, "kept").join("generations/000009")).unwrap();
    std::os::unix::fs::symlink(&outside, store(&env, "linked")).unwrap();
    let linked = env.stasis(&["checkpoint", "delete", "linked"]).unwrap();
    let kept = env.stasis(&["checkpoint", "delete", "kept"]).unwrap();
    assert!(outside.join("precious").exists(), "{linked:?} {kept:?}");
    insta::assert_snapshot!(env.told(&linked), @"
    exit 255
    FATAL:   $DIR/data/checkpoints/linked is not safe to use: it is a symbolic link, and links are not followed
             hint:    the store takes only directories of your own that nobody else can write to; look at `ls -ld $DIR/data/checkpoints/linked`, or choose another store
    ");
    env.finish().unwrap();
}

/// A program that has made code in its memory, as a just-in-time compiler does.
#[test]
fn memory_is_not_mapped_from_a_store_from_which_nothing_may_be_executed() {
    need!(root, image);
    let script = "import mmap, time\nprivate = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS\n\
                  code = mmap.mmap(-1, 1 << 20, flags=private, prot=7)\ncode[:] = b'\\xc3' * (1 << 20)\n\
                  print('up', flush=True)\ntime.sleep(1000)";
    for who in [Who::User, Who::Myself] {
        let env = Env::new(who).unwrap();
        let data = env.path("data");
        super::disk::small(&data, env.uid(), 220).unwrap();
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_NOEXEC;
        mount(None::<&str>, &data, None::<&str>, flags, Some("size=220m")).unwrap();
        let any = image(&env, "any");
        let start = ["instance", "start", "--backend", "native", "--checkpoint", "kept", &any, "one"];
        env.ok(&[&start[..], &["python3", "-c", script]].concat()).unwrap();
        env.ok(&["checkpoint", "instance", "one"]).unwrap();
        env.ok(&["instance", "stop", "one"]).unwrap();
        for how in ["restart=map", "restart=map-then-copy", "restart=copy"] {
            let again = ["instance", "start", "--restart", "kept", "--backend-option", how, "-", "one"];
            let told = env.ok(&again).unwrap().err;
            assert_eq!(
                told.contains("memory was copied, not mapped"),
                how != "restart=copy",
                "{how}: {told}"
            );
            env.ok(&["checkpoint", "instance", "one"]).unwrap();
            env.ok(&["instance", "stop", "one"]).unwrap();
        }
        env.finish().unwrap();
    }
}
