//! What was saved comes back in other namespaces, again and again, and checks itself.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test")]

#[allow(dead_code, unreachable_pub, reason = "each test uses a part of it")]
mod engine;

use engine::rounds::{PID, ROUND, apart, here, next_pid, passed, restore, said, times, well};
use engine::{Mailbox, compile, dump, dump_onto, refusal, report, soon, start};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Rightly refused, and over a moment later.
const PASSING: [&str; 3] = ["that nobody has read", "wait to be accepted", "was not accepted yet"];
/// Runs the test inside; the rounds that it starts there come to this place too.
fn inside(test: &str, part: fn()) {
    let Ok(round) = std::env::var(ROUND) else { return engine::inside(test, part) };
    match round.split('\n').collect::<Vec<_>>()[..] {
        ["round", from, program, signal, how, mode, to] => {
            round_apart(from, program, signal, [how, mode], to)
        }
        ["fails", what] => fails_apart(what),
        ["chain", program] => chain_apart(program),
        ["look", from, how] => look_apart(from, how),
        _ => panic!("{round:?}"),
    }
}

/// Started or brought back, it is well; then it is saved.
fn round(from: Option<&str>, program: &Path, signal: &str, [how, mode]: [&str; 2], to: &str) {
    passed(&apart(&["round", from.unwrap_or(""), program.to_str().unwrap(), signal, how, mode, to]));
}

fn round_apart(from: &str, program: &str, signal: &str, [how, mode]: [&str; 2], to: &str) {
    let output = here("output");
    let _subject = if from.is_empty() {
        fs::create_dir_all(here("files")).unwrap();
        next_pid(PID);
        let subject = start(Path::new(program), &[here("files").to_str().unwrap()], &output);
        soon("it is ready", || said(&output).contains("ready"));
        Some(subject)
    } else {
        let out = restore(&here(from), how);
        let told = report(&out);
        assert_eq!(told["mode"], how.trim_start_matches('-'), "{told}");
        assert_eq!(fs::read_to_string("root-pid").unwrap(), format!("{PID}\n"));
        None
    };
    if signal.is_empty() {
        well(&output, times(&output), 2);
    } else if signal == "-" {
        std::thread::sleep(std::time::Duration::from_millis(100));
    } else if !from.is_empty() {
        for signal in signal.split(' ') {
            let before = times(&output);
            let status = Command::new("kill").args([signal, &PID.to_string()]).status().unwrap();
            assert!(status.success());
            well(&output, before, 1);
        }
    }
    if !to.is_empty() {
        // An earlier capture leaves calls that continue others.
        for image in ["image-before", to] {
            soon("nothing is under way", || {
                let out = dump(PID, &here(image), &[mode]);
                let said = String::from_utf8_lossy(&out.stderr);
                !PASSING.iter().any(|why| said.contains(why))
                    && report(&out)["mode"] == mode.trim_start_matches('-')
            });
        }
    }
}

/// Three generations, each in namespaces of its own.
fn generations(program: &Path, signal: &str, how: &[[&str; 2]]) {
    let _ = fs::remove_file(here("output"));
    round(None, program, signal, ["--copy", "--fork"], "image-0");
    for (number, words) in how.iter().enumerate() {
        let [from, to] = [format!("image-{number}"), format!("image-{}", number + 1)];
        round(Some(&from), program, signal, *words, &to);
    }
}

const ALL: [[&str; 2]; 4] =
    [["--map", "--fork"], ["--copy", "--plain"], ["--map", "--plain"], ["--copy", "--fork"]];

#[test]
fn nearly_everything_comes_back() {
    inside("nearly_everything_comes_back", nearly_everything_inside);
}

fn nearly_everything_inside() {
    generations(&compile("many", &["-pthread"]), "", &ALL);
}

#[test]
fn much_memory_is_read_by_several() {
    inside("much_memory_is_read_by_several", much_inside);
}

fn much_inside() {
    generations(&compile("much", &["-pthread"]), "", &ALL);
}

#[test]
fn what_was_written_into_a_private_mapping_of_a_file_comes_back() {
    inside("what_was_written_into_a_private_mapping_of_a_file_comes_back", private_inside);
}

fn private_inside() {
    let program = compile("private", &[]);
    generations(&program, "", &ALL);
    generations(&program, "", &[["--map", "--fork"]; 3]);
}

#[test]
fn registers_come_back() {
    inside("registers_come_back", registers_inside);
}

fn registers_inside() {
    generations(&compile("registers", &[]), "", &ALL);
    generations(&compile("registers", &["-static"]), "", &ALL[..2]);
}

#[test]
fn sockets_keep_what_is_under_way() {
    inside("sockets_keep_what_is_under_way", sockets_inside);
}

/// The files of sockets in a memory file system are not there any more at a restart.
fn sockets_inside() {
    let program = compile("sockets", &[]);
    let _ = fs::remove_file(here("output"));
    round(None, &program, "", ["--copy", "--fork"], "image-0");
    round(Some("image-0"), &program, "", ["--map", "--fork"], "image-1");
    for name in ["files/listener", "files/near"] {
        fs::remove_file(here(name)).unwrap();
    }
    round(Some("image-1"), &program, "", ["--copy", "--plain"], "image-2");
}

#[test]
fn sockets_keep_their_options() {
    inside("sockets_keep_their_options", options_inside);
}

fn options_inside() {
    generations(&compile("options", &[]), "-USR1", &ALL[..2]);
}

#[test]
fn messages_wait_whatever_they_and_the_buffers_are() {
    inside("messages_wait_whatever_they_and_the_buffers_are", messages_inside);
}

fn messages_inside() {
    generations(&compile("messages", &[]), "-USR1", &ALL[..2]);
}

#[test]
fn files_that_never_had_a_name_can_get_one() {
    inside("files_that_never_had_a_name_can_get_one", nameless_inside);
}

fn nameless_inside() {
    generations(&compile("nameless", &[]), "-USR1", &ALL[..2]);
}

/// Generations of one chain.
const LINKS: usize = 50;

#[test]
fn every_increment_is_all_of_the_memory() {
    inside("every_increment_is_all_of_the_memory", increments_inside);
}

fn increments_inside() {
    let _ = fs::remove_file(here("output"));
    passed(&apart(&["chain", compile("churn", &[]).to_str().unwrap()]));
    for number in (0..LINKS).rev() {
        for how in ["--copy", "--map"] {
            passed(&apart(&["look", &format!("image-{number}"), how]));
        }
    }
}

/// Saved again and again while its memory changes; each generation has what the one before shares with it.
fn chain_apart(program: &str) {
    let output = here("output");
    fs::create_dir_all(here("files")).unwrap();
    next_pid(PID);
    let mut subject = start(Path::new(program), &[here("files").to_str().unwrap()], &output);
    soon("it is ready", || said(&output).contains("ready"));
    let kept = Mailbox::new();
    let track = kept.arguments();
    let track: Vec<&str> = track.iter().map(String::as_str).collect();
    let (mut remembers, mut increments) = (true, 0);
    for number in 0..LINKS {
        let (base, image) = (here(&format!("image-{}", number.max(1) - 1)), here(&format!("image-{number}")));
        let more = [&[["--fork", "--plain"][number % 2]][..], &track].concat();
        let out = match number {
            0 => dump(subject.pid(), &image, &more),
            _ => dump_onto(subject.pid(), &base, &image, &more),
        };
        let told = report(&out);
        fs::write(image.join("told.json"), &out.stdout).unwrap();
        remembers &= !told["tracking"].is_null();
        // Once too much is superseded, everything is saved again.
        if told["increment"] == true {
            increments += 1;
            share(&base, &image);
        }
        let done = said(&output).matches("did").count();
        assert!(Command::new("kill").args(["-USR1", &subject.pid().to_string()]).status().unwrap().success());
        soon("it changed", || {
            assert!(subject.running() && !said(&output).contains("bad"), "{number}: {}", said(&output));
            said(&output).matches("did").count() > done
        });
    }
    if remembers {
        assert!(increments >= LINKS / 2, "{increments} of {LINKS}");
    } else {
        println!("whole generations only: this kernel does not remember what is written");
    }
}

/// What the store does: files of the generation before that belong to this one.
fn share(base: &Path, image: &Path) {
    for process in engine::core(image)["processes"].as_array().unwrap() {
        for layer in process["layers"].as_array().into_iter().flatten() {
            let name = layer["file"].as_str().unwrap();
            if !image.join(name).exists() {
                fs::hard_link(base.join(name), image.join(name)).unwrap();
            }
        }
    }
}

fn look_apart(from: &str, how: &str) {
    let output = here("output");
    report(&restore(&here(from), how));
    for _ in 0..2 {
        let before = times(&output);
        assert!(Command::new("kill").args(["-USR2", &PID.to_string()]).status().unwrap().success());
        well(&output, before, 1);
    }
}

#[test]
fn watches_of_files_come_back_under_their_numbers() {
    inside("watches_of_files_come_back_under_their_numbers", inotify_inside);
}

fn inotify_inside() {
    generations(&compile("inotify", &[]), "", &ALL[..2]);
}

#[test]
fn daemons_come_back_to_who_adopted_them() {
    inside("daemons_come_back_to_who_adopted_them", daemons_inside);
}

fn daemons_inside() {
    generations(&compile("daemons", &[]), "", &ALL);
    let core = fs::read_to_string("image-1/core.json").unwrap();
    assert!(core.contains("\"subreaper\":true"));
}

#[test]
fn terminals_keep_their_sessions() {
    inside("terminals_keep_their_sessions", terminals_inside);
}

fn terminals_inside() {
    generations(&compile("terminal", &["-lutil"]), "", &ALL[..2]);
}

#[test]
fn calls_that_wait_go_on_waiting() {
    inside("calls_that_wait_go_on_waiting", waits_inside);
}

fn waits_inside() {
    let program = compile("waits", &["-pthread"]);
    let _ = fs::remove_file(here("output"));
    round(None, &program, "-", ["--copy", "--fork"], "image-0");
    round(Some("image-0"), &program, "-", ["--map", "--fork"], "image-1");
    round(Some("image-1"), &program, "-USR1", ["--copy", "--fork"], "");
}

/// On a busy machine threads are stopped that were let go just before, and stand before the instruction by which a timed
/// wait is continued. A new process knows of no wait; it must not wait for ever either.
#[test]
fn waits_that_were_about_to_be_continued_go_on() {
    inside("waits_that_were_about_to_be_continued_go_on", sleeper_inside);
}

fn sleeper_inside() {
    let program = compile("sleeper", &["-pthread"]);
    let _ = fs::remove_file(here("output"));
    round(None, &program, "", ["--copy", "--fork"], "image-0");
    let core = fs::read(here("image-0/core.json")).unwrap();
    // What is waited for, that nobody knows it, and nothing at all.
    for call in [Some(230), Some(219), None] {
        let mut image: serde_json::Value = serde_json::from_slice(&core).unwrap();
        let threads = image["processes"][0]["threads"].as_array_mut().unwrap();
        assert_eq!(threads.len(), 2);
        for thread in threads {
            let registers = &mut thread["registers"];
            let stopped_in = [230, 219].map(serde_json::Value::from).contains(&registers["orig_rax"]);
            assert!(stopped_in, "both sleep nearly always: {registers}");
            if registers["rax"] != 219 {
                registers["rip"] = (registers["rip"].as_u64().unwrap() - 2).into();
            }
            (registers["rax"], registers["orig_rax"]) = (219.into(), 230.into());
            thread["call"] = call.into();
        }
        fs::write(here("image-0/core.json"), image.to_string()).unwrap();
        round(Some("image-0"), &program, "", ["--copy", "--fork"], "");
    }
}

#[test]
fn a_timer_that_fires_while_the_rest_is_saved_has_fired() {
    inside("a_timer_that_fires_while_the_rest_is_saved_has_fired", timers_inside);
}

fn timers_inside() {
    generations(&compile("timers", &["-lrt", "-pthread"]), "", &ALL[..2]);
}

#[test]
fn what_a_process_has_set_stays_set() {
    inside("what_a_process_has_set_stays_set", settings_inside);
}

fn settings_inside() {
    generations(&compile("settings", &["-pthread"]), "-USR1", &ALL[..2]);
}

#[test]
fn memory_grows_and_is_given_back_as_before() {
    inside("memory_grows_and_is_given_back_as_before", memory_inside);
}

fn memory_inside() {
    let program = compile("memory", &[]);
    generations(&program, "-USR1 -USR2", &[["--copy", "--fork"], ["--copy", "--plain"]]);
    // A mapped image does not stand for what is given back; for what grows it does.
    generations(&program, "-USR1", &[["--map", "--fork"], ["--map", "--plain"]]);
}

#[test]
fn memory_is_locked_dropped_and_guarded_as_before() {
    inside("memory_is_locked_dropped_and_guarded_as_before", advice_inside);
}

/// Locked memory is never saved from a copy. The limit is one that the program raises itself.
fn advice_inside() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, most) = getrlimit(Resource::RLIMIT_MEMLOCK).unwrap();
    setrlimit(Resource::RLIMIT_MEMLOCK, 64 << 10, most).unwrap();
    let program = compile("advice", &["-pthread"]);
    let _ = fs::remove_file(here("output"));
    round(None, &program, "-USR1", ["--copy", "--plain"], "image-0");
    round(Some("image-0"), &program, "-USR1", ["--map", "--plain"], "image-1");
    round(Some("image-1"), &program, "-USR1", ["--copy", "--plain"], "");
}

#[test]
fn shared_memory_is_what_it_was_and_no_more_may_be_done_to_it() {
    inside("shared_memory_is_what_it_was_and_no_more_may_be_done_to_it", kept_inside);
}

/// Between capture and restart others write to the files that are shared: what was saved comes back, in the memory file
/// system, and what is not saved is what the others left.
fn kept_inside() {
    let program = compile("kept", &[]);
    fs::create_dir(here("files")).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(here("files")).status().unwrap();
    assert!(mounted.success());
    let _ = fs::remove_file(here("output"));
    round(None, &program, "-USR1", ["--copy", "--fork"], "image-0");
    for (number, words) in ALL.iter().enumerate() {
        fs::write(here("files/shared"), vec![0x55; 10 << 20]).unwrap();
        fs::write(here("mapped"), vec![0x55; 5 * 4096]).unwrap();
        let [from, to] = [format!("image-{number}"), format!("image-{}", number + 1)];
        round(Some(&from), &program, "-USR1", *words, &to);
    }
}

/// A restore that fails: what it says, and nothing is left of it.
fn fails(what: &str) -> String {
    let said = passed(&apart(&["fails", what]));
    let told: Vec<&str> = said.lines().filter_map(|line| Some(line.split_once("told: ")?.1)).collect();
    let work = std::env::current_dir().unwrap();
    told.join("\n").replace(work.to_str().unwrap(), "WORK")
}

fn fails_apart(what: &str) {
    let image = here("broken");
    let mut other = None;
    if what == "taken" {
        next_pid(PID);
        other = Some(Command::new("sleep").arg("100").spawn().unwrap());
        assert_eq!(other.as_ref().map(std::process::Child::id), Some(PID));
    }
    println!("told: {}", refusal(&restore(&image, "--copy")));
    // Killed, but nobody's that waits for it here.
    let ends = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ") || stat.contains("(sleep)")
    };
    let pids = || {
        let names = fs::read_dir("/proc").unwrap().filter_map(|e| e.ok()?.file_name().into_string().ok());
        names.filter_map(|name| name.parse::<u32>().ok()).filter(|pid| *pid > 1)
    };
    soon("nothing is left", || pids().all(ends));
    assert!(!here("root-pid").exists());
    if let Some(mut other) = other {
        other.kill().unwrap();
        other.wait().unwrap();
    }
}

#[test]
fn what_cannot_come_back_is_told_and_nothing_is_left() {
    inside("what_cannot_come_back_is_told_and_nothing_is_left", broken_inside);
}

fn broken_inside() {
    let program = compile("many", &["-pthread"]);
    let _ = fs::remove_file(here("output"));
    round(None, &program, "", ["--copy", "--fork"], "image-0");
    let core = fs::read_to_string("image-0/core.json").unwrap();
    let fresh = |text: &str| {
        let remove_and_copy = "rm -rf broken && cp -a image-0 broken";
        let out = Command::new("sh").args(["-c", remove_and_copy]).output().unwrap();
        assert!(out.status.success());
        fs::write("broken/core.json", text).unwrap();
    };
    let mut told = Vec::new();
    let mut tell = |text: &str, change: &dyn Fn(), part: &str| {
        fresh(text);
        change();
        told.push(fails(part));
    };
    tell(&core, &|| {}, "taken");
    tell(&core[..20], &|| {}, "");
    tell(&core.replacen("\"format\":1", "\"format\":9", 1), &|| {}, "");
    tell(&core, &|| fs::remove_file("broken/pages-100.img").unwrap(), "");
    tell(
        &core,
        &|| fs::File::options().write(true).open("broken/pages-100.img").unwrap().set_len(0).unwrap(),
        "",
    );
    tell(&core.replace("\"cwd\":\"/usr\"", "\"cwd\":\"/not/there\""), &|| {}, "");
    tell(&core.replace("files/twin", "files/not-there"), &|| {}, "");
    let out = Command::new("touch").arg(&program).output().unwrap();
    assert!(out.status.success());
    tell(&core, &|| {}, "");
    let digits = |text: String| {
        let mut last = false;
        let kept = text.chars().filter_map(|c| {
            let again = std::mem::replace(&mut last, c.is_ascii_digit());
            if c.is_ascii_digit() { (!again).then_some('N') } else { Some(c) }
        });
        kept.collect::<String>()
    };
    insta::assert_snapshot!(digits(told.join("\n")), @r"
    failed: cannot make a process with pid N: another process of the container has this pid
    damaged: the image's core.json cannot be understood: EOF while parsing an object at line N column N
    unsupported: the image cannot be understood: it has format N, and this engine reads up to N
    damaged: the image's pages-N.img cannot be opened: No such file or directory (os error N)
    damaged: the image's pages-N.img is too short: N bytes of at least N
    failed: cannot rebuild process N: its working directory /not/there: No such file or directory
    failed: cannot bring back descriptor N of subject (pid N), the file WORK/files/not-there: No such file or directory
    unsupported: the file WORK/many cannot be mapped again: it was written to since
    ");
}
