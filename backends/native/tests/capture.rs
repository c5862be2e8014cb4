//! What a capture writes down, and that the application does not notice it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test")]

#[allow(dead_code, unreachable_pub, reason = "each test uses a part of it")]
mod engine;

use engine::{Subject, compile, core, dump, empty, engine, inside, refusal, report, soon, start};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

const MODES: [&str; 2] = ["--fork", "--plain"];

fn here(name: &str) -> PathBuf {
    std::env::current_dir().unwrap().join(name)
}

/// Starts a subject and waits until it says that it is ready.
fn ready(program: &Path, arguments: &[&str]) -> (Subject, PathBuf) {
    let output = here(&format!("{}.out", program.file_name().unwrap().to_str().unwrap()));
    let _ = fs::remove_file(&output);
    let mut subject = start(program, arguments, &output);
    soon("the subject is ready", || {
        assert!(subject.running(), "{}", fs::read_to_string(&output).unwrap());
        fs::read_to_string(&output).unwrap().contains("ready")
    });
    (subject, output)
}

fn python(script: &str) -> (Subject, PathBuf) {
    let path = here("script.py");
    fs::write(&path, script).unwrap();
    ready(Path::new("/usr/bin/python3"), &[path.to_str().unwrap()])
}

fn signal(pid: u32, signal: &str) {
    let status = Command::new("kill").args([signal, &pid.to_string()]).status().unwrap();
    assert!(status.success());
}

fn state(pid: u64) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("State:\t")).unwrap()[..1].to_owned()
}

#[test]
fn objects_are_described_and_left_as_they_are() {
    inside("objects_are_described_and_left_as_they_are", objects_inside);
}

fn objects_inside() {
    let program = compile("objects", &["-lutil", "-lrt"]);
    let (mut subject, output) = ready(&program, &[]);
    let image = here("image");
    for (number, mode) in MODES.iter().enumerate() {
        let told = report(&dump(subject.pid(), &image, &[mode]));
        assert_eq!(told["mode"], mode.trim_start_matches('-'));
        assert_eq!(told["processes"].as_array().unwrap().len(), 3);
        check_objects(&core(&image), &image);
        check_process(&core(&image), subject.pid());
        signal(subject.pid(), "-USR1");
        soon("it looked around", || {
            let said = fs::read_to_string(&output).unwrap();
            assert!(subject.running(), "{said}");
            said.matches("well").count() == number + 1
        });
    }
}

/// The object behind a descriptor of the root process.
fn object(core: &Value, fd: i64) -> &Value {
    let descriptors = core["processes"][0]["descriptors"].as_array().unwrap();
    let descriptor =
        descriptors.iter().find(|d| d["fd"] == fd).unwrap_or_else(|| panic!("no descriptor {fd}"));
    &core["objects"][usize::try_from(descriptor["object"].as_u64().unwrap()).unwrap()]
}

fn content(image: &Path, number: &Value) -> Vec<u8> {
    fs::read(image.join("files").join(number.to_string())).unwrap()
}

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn check_objects(core: &Value, image: &Path) {
    let pipe = |fd| &core["pipes"][usize::try_from(object(core, fd)["pipe"].as_u64().unwrap()).unwrap()];
    assert_eq!(object(core, 3)["pipe"], object(core, 4)["pipe"]);
    assert_eq!((&pipe(3)["capacity"], &pipe(3)["closed"]), (&json!(8192), &json!(false)));
    assert_eq!(content(image, &pipe(3)["content"]), b"in the pipe");
    assert_eq!(content(image, &pipe(29)["content"]), b"in the fifo");
    assert!(pipe(29)["fifo"].as_str().unwrap().ends_with("/fifo"));

    assert_eq!(object(core, 6)["queue"], json!([hex("one two")]));
    assert_eq!(object(core, 8)["queue"], json!([hex("first"), hex("2nd")]));
    let peers = |fd: i64| usize::try_from(object(core, fd)["peer"].as_u64().unwrap()).unwrap();
    for (one, other) in [(5, 6), (7, 8), (13, 14)] {
        assert_eq!(&core["objects"][peers(one)], object(core, other));
        assert_eq!(&core["objects"][peers(other)], object(core, one));
    }
    assert_eq!((&object(core, 13)["shutdown"], &object(core, 14)["shutdown"]), (&json!(2), &json!(1)));
    assert_eq!(object(core, 14)["queue"], json!([hex("hello")]));
    assert_eq!(
        (&object(core, 12)["listening"], &object(core, 12)["local"]),
        (&json!(3), &json!(format!("0100{}00", hex("listens"))))
    );

    assert_eq!((&object(core, 9)["listening"], &object(core, 9)["reuse_address"]), (&json!(7), &json!(true)));
    let keep_alive = json!({"level": 1, "name": 9, "value": "01000000"});
    assert!(object(core, 9)["options"].as_array().unwrap().contains(&keep_alive));
    assert_eq!(object(core, 9)["flags"].as_u64().unwrap() & 0o4000, 0o4000, "not blocking");
    assert_eq!((&object(core, 10)["family"], &object(core, 10)["listening"]), (&json!(10), &json!(5)));
    assert_eq!((&object(core, 11)["socket_type"], &object(core, 11)["listening"]), (&json!(2), &json!(null)));

    assert_eq!((&object(core, 15)["count"], &object(core, 15)["semaphore"]), (&json!(5), &json!(true)));
    assert_eq!(object(core, 16)["interval"], 7_000_000_000_u64);
    assert!((900_000_000_000..=1_000_000_000_000_u64).contains(&object(core, 16)["value"].as_u64().unwrap()));
    assert_eq!(object(core, 17)["mask"], (1_u64 << 11) | (1 << 36), "SIGUSR2 and SIGRTMIN + 3");
    let watch = &object(core, 18)["targets"][0];
    assert_eq!((&watch["fd"], &watch["data"]), (&json!(9), &json!(0xdead_beef_cafe_u64)));
    assert_eq!(object(core, 19)["pid"], core["root"]);

    assert_eq!(
        (object(core, 20)["flags"].as_u64().unwrap() & 0o2001, &object(core, 20)["flock"]),
        (0o2001, &json!(true))
    );
    assert_eq!(object(core, 20), object(core, 21));
    assert_eq!(object(core, 22)["offset"], 3);
    let file = &object(core, 23);
    assert_eq!((&file["kind"], &file["file"]["size"]), (&json!("file"), &json!(100_000)));
    assert_eq!((&content(image, &file["deleted"])[..7], &file["whose"]), (&b"deleted"[..], &json!([0, 0])));
    assert_eq!((&object(core, 24)["kind"], &object(core, 24)["path"]), (&json!("directory"), &json!("/")));
    assert_eq!((&object(core, 25)["kind"], &object(core, 25)["minor"]), (&json!("device"), &json!(5)));
    assert_eq!((&object(core, 27)["master"], &object(core, 28)["master"]), (&json!(true), &json!(false)));
    assert_eq!(object(core, 27)["index"], object(core, 28)["index"]);

    let memories = core["memories"].as_array().unwrap();
    assert_eq!(memories.len(), 2);
    assert_eq!(
        memories[0]["source"],
        json!({"kind": "memfd", "name": "mine", "seals": 2, "mode": 0o777, "whose": [0, 0]})
    );
    assert_eq!(&content(image, &memories[0]["content"])[4096..4101], b"memfd");
    assert_eq!(memories[1]["source"], json!({"kind": "anonymous"}));
    assert_eq!(&content(image, &memories[1]["content"])[12345..12351], b"shared");
}

fn check_process(core: &Value, pid: u32) {
    let root = &core["processes"][0];
    assert_eq!((&root["pid"], &root["sid"], &root["umask"]), (&json!(pid), &json!(pid), &json!(0o27)));
    // Signals 10 and 37: SA_RESTART and SA_NODEFER, and the mask of the second.
    assert_eq!(root["signals"][9]["flags"].as_u64().unwrap() & 0x1000_0000, 0x1000_0000);
    assert_eq!(root["signals"][36]["flags"].as_u64().unwrap() & 0x4000_0000, 0x4000_0000);
    assert_eq!(root["signals"][36]["mask"].as_u64().unwrap() & 1, 1, "SIGHUP");
    assert!(root["pending"][0].as_str().unwrap().starts_with("25000000"), "{}", root["pending"]);
    assert!(root["threads"][0]["pending"][0].as_str().unwrap().starts_with("0c000000"));
    let timer = &root["posix_timers"][0];
    assert_eq!((&timer["signal"], &timer["interval"]), (&json!(37), &json!(7_000_000_000_u64)));
    assert!(timer["value"].as_u64().unwrap() > 900_000_000_000);
    let locks = root["descriptors"].as_array().unwrap().iter().find(|d| d["fd"] == 22).unwrap();
    assert_eq!(locks["locks"], json!([{"write": false, "start": 1, "end": 2}]));
    let states: Vec<&Value> = core["processes"].as_array().unwrap().iter().map(|p| &p["state"]).collect();
    assert!(states.contains(&&json!({"state": "zombie", "status": 0x300})), "{states:?}");
    let child = &core["processes"][1];
    assert_eq!((&child["ppid"], &child["sid"]), (&json!(pid), &json!(pid)));
}

#[test]
fn the_moment_of_a_capture_is_one() {
    inside("the_moment_of_a_capture_is_one", moment_inside);
}

/// Two pages far apart are written one after the other, for ever, while the rest of the memory is being saved: in the
/// image they are never further apart than the program lets them be.
fn moment_inside() {
    let (subject, output) = python(
        "import mmap, ctypes, sys\n\
         m = mmap.mmap(-1, 32 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n\
         a = ctypes.addressof(ctypes.c_char.from_buffer(m))\n\
         for i in range(0, 16 << 20, 4096): m[i] = 1\n\
         first, last = ctypes.c_uint64.from_address(a + 8), ctypes.c_uint64.from_address(a + (32 << 20) - 8)\n\
         print(f'ready {a}', flush=True)\n\
         while True:\n    first.value += 1\n    last.value = first.value\n",
    );
    let said = fs::read_to_string(&output).unwrap();
    let address: u64 = said.split_whitespace().nth(1).unwrap().parse().unwrap();
    let image = here("image");
    for mode in ["--fork", "--fork", "--plain"] {
        let told = report(&dump(subject.pid(), &image, &[mode]));
        let areas = core(&image)["processes"][0]["areas"].as_array().unwrap().clone();
        let pages = fs::File::open(image.join(format!("pages-{}.img", subject.pid()))).unwrap();
        let word = |at: u64| {
            let number = |area: &Value, name: &str| area[name].as_u64().unwrap();
            let area = areas.iter().find(|a| number(a, "start") <= at && at < number(a, "end")).unwrap();
            let mut bytes = [0; 8];
            pages.read_exact_at(&mut bytes, number(area, "base") + (at - number(area, "start"))).unwrap();
            u64::from_ne_bytes(bytes)
        };
        let (first, last) = (word(address + 8), word(address + (32 << 20) - 8));
        assert!(first == last || first == last + 1, "{first} and {last}, {mode}");
        assert!(first > 0);
        // Half of the memory was never touched.
        let used = pages.metadata().unwrap().blocks() * 512;
        let written = told["bytes"].as_u64().unwrap();
        assert!(written < 24 << 20 && used < 32 << 20, "{written} bytes written, {used} used");
    }
}

#[test]
fn stopped_processes_stay_stopped_and_their_parents_are_not_told() {
    inside("stopped_processes_stay_stopped_and_their_parents_are_not_told", stopped_inside);
}

fn stopped_inside() {
    let (subject, output) = python(
        "import os, signal, threading, time\n\
         def run():\n    while True: time.sleep(0.01)\n\
         child = os.fork()\n\
         for i in range(3): threading.Thread(target=run, daemon=True).start()\n\
         if child == 0: run()\n\
         os.kill(child, signal.SIGSTOP)\n\
         os.waitpid(child, os.WUNTRACED)\n\
         print(f'ready {child}', flush=True)\n\
         while True:\n    told = os.waitpid(child, os.WUNTRACED | os.WCONTINUED | os.WNOHANG)\n    \
             if told != (0, 0): print('noticed', told, flush=True)\n    time.sleep(0.001)\n",
    );
    let child: u64 = fs::read_to_string(&output).unwrap().split_whitespace().nth(1).unwrap().parse().unwrap();
    let image = here("image");
    for mode in MODES {
        report(&dump(subject.pid(), &image, &[mode]));
        assert_eq!(core(&image)["processes"][1]["state"], json!({"state": "stopped", "signal": 19}));
        assert_eq!(state(child), "T");
    }
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert!(!fs::read_to_string(&output).unwrap().contains("noticed"));
    // A capture that is to be the last leaves everybody stopped; somebody else lets them run on.
    report(&dump(subject.pid(), &image, &["--stop"]));
    assert_eq!(core(&image)["processes"][0]["state"], json!({"state": "running"}));
    soon("all are stopped", || state(subject.pid().into()) == "T" && state(child) == "T");
    signal(subject.pid(), "-CONT");
    soon("it runs on", || state(subject.pid().into()) != "T");
}

#[test]
fn what_fails_leaves_the_application_running() {
    inside("what_fails_leaves_the_application_running", failures_inside);
}

fn failures_inside() {
    let (mut subject, output) = python(
        "import time\n\
         m = bytearray(b'x') * (64 << 20)\n\
         print('ready', flush=True)\n\
         while True:\n    print(time.monotonic(), flush=True)\n    time.sleep(0.001)\n",
    );
    let lines = || fs::read_to_string(&output).unwrap().lines().count();
    let goes_on = |subject: &mut Subject| {
        let before = lines();
        soon("it runs on", || {
            assert!(subject.running());
            lines() > before + 10
        });
    };
    let small = here("small");
    fs::create_dir(&small).unwrap();
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(&small).status().unwrap();
    assert!(mounted.success());
    let pid = subject.pid().to_string();
    for mode in MODES {
        let arguments = ["dump", "--pid", &pid, "--dir", small.to_str().unwrap(), mode];
        let out = engine(&arguments).output().unwrap();
        assert!(refusal(&out).starts_with("no-space: "), "{}", refusal(&out));
        goes_on(&mut subject);
    }
    // Told to end while it writes.
    let image = here("image");
    fs::create_dir(&image).unwrap();
    for mode in MODES {
        let arguments = ["dump", "--pid", &pid, "--dir", image.to_str().unwrap(), mode];
        let mut command = engine(&arguments);
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let child = command.spawn().unwrap();
        let pages = image.join(format!("pages-{pid}.img"));
        soon("it writes", || pages.metadata().is_ok_and(|pages| pages.blocks() > 0));
        signal(child.id(), "-TERM");
        let out = child.wait_with_output().unwrap();
        // It may have been done already.
        assert!(out.status.success() || refusal(&out).starts_with("cancelled: "), "{out:?}");
        goes_on(&mut subject);
        fs::remove_file(pages).unwrap();
    }
    let gone = dump(999_999, &here("other"), &[]);
    assert_eq!(
        refusal(&gone),
        "application-ended: /proc/999999/stat cannot be read: No such file or directory (os error 2)"
    );
}

#[test]
fn no_waiting_message_is_passed_over() {
    inside("no_waiting_message_is_passed_over", messages_inside);
}

/// A message without content is met only once where it is not the first.
fn messages_inside() {
    let (mut subject, _) = python(
        "import os, socket, time\n\
         a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
         os.dup2(b.fileno(), 50)\n\
         a.send(b'x'); a.send(b''); a.send(b'y')\n\
         print('ready', flush=True)\n\
         while True: time.sleep(1)\n",
    );
    let image = here("image");
    report(&dump(subject.pid(), &image, &[]));
    assert_eq!(object(&core(&image), 50)["queue"], json!(["78", "", "79"]));
    let told = refusal(&dump(subject.pid(), &image, &[]));
    assert!(
        told.ends_with("a message without content waits in it, and the kernel does not tell where"),
        "{told}"
    );
    assert!(subject.running());
}

#[test]
fn an_engine_that_is_killed_while_it_reads_messages_leaves_the_socket_as_it_was() {
    inside("an_engine_that_is_killed_while_it_reads_messages_leaves_the_socket_as_it_was", peeking_inside);
}

fn peeking_inside() {
    let (subject, output) = python(
        "import os, socket, time\n\
         a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n\
         a.send(b'x'); a.send(b'y')\n\
         print('ready', flush=True)\n\
         n = 0\n\
         while True:\n    n += 1; print(n, b.getsockopt(socket.SOL_SOCKET, 42), flush=True); time.sleep(0.001)\n",
    );
    let said = || fs::read_to_string(&output).unwrap();
    let pid = subject.pid().to_string();
    let image = here("image");
    let mut killed = 0;
    for step in (1..40).map(|step| step.to_string()) {
        empty(&image);
        let arguments = ["dump", "--pid", &pid, "--dir", image.to_str().unwrap(), "--kill-at", &step];
        let out = engine(&arguments).output().unwrap();
        killed += usize::from(out.status.code().is_none());
        let before = said().lines().count();
        // Whoever watched over the socket needs a moment of its own.
        soon("the socket is as it was", || {
            let said = said();
            let lines: Vec<&str> = said.lines().skip(before + 2).collect();
            lines.len() > 5 && lines.iter().rev().take(3).all(|line| line.ends_with(" -1"))
        });
    }
    assert!(killed > 30, "{killed}");
}

#[test]
fn what_changes_while_it_is_looked_at_is_no_obstacle() {
    inside("what_changes_while_it_is_looked_at_is_no_obstacle", changing_inside);
}

/// A descriptor that is now this and now that, which the examination sees as something between the two.
fn changing_inside() {
    let (mut subject, _) = python(
        "import os, socket\n\
         a, b, c = open('a', 'w'), open('b', 'w'), socket.socket()\n\
         print('ready', flush=True)\n\
         while True:\n    for one in (a, b, c): os.dup2(one.fileno(), 50)\n",
    );
    let image = here("image");
    for _ in 0..20 {
        report(&dump(subject.pid(), &image, &["--plain"]));
    }
    assert!(subject.running());
}
