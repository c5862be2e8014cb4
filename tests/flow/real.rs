//! Programs that people really run, each busy while it is saved and checking itself afterwards, through generations.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::engine::{Engine, as_all};
use super::programs::Job;
use crate::env::{Env, Who};
use crate::http::{get, post};
use crate::need::need;
use crate::running::{Outcome, PATIENCE};

const NATIVE: Engine = Engine("native");
const GENERATIONS: i64 = 3;

as_all! { ()
    a_program_of_go(go)
    a_program_of_rust()
    a_program_of_rust_without_libraries()
    a_program_of_rust_with_musl(rust_musl)
    node(programs)
    sqlite_in_memory()
    sqlite_on_a_disk()
    redis_under_load(programs)
    nginx_under_load(programs)
    a_hundred_generations()
}

fn a_program_of_go(who: Who) -> Outcome<()> {
    busy(who, &[], "programs", &["/opt/subjects/bin/busy-go", "PORT"])
}

fn a_program_of_rust(who: Who) -> Outcome<()> {
    busy(who, &[], "any", &["/opt/subjects/bin/busy-rust", "PORT"])
}

fn a_program_of_rust_without_libraries(who: Who) -> Outcome<()> {
    busy(who, &[], "small", &["/opt/subjects/bin/busy-rust-static", "PORT"])
}

fn a_program_of_rust_with_musl(who: Who) -> Outcome<()> {
    busy(who, &[], "small", &["/opt/subjects/bin/busy-rust-musl", "PORT"])
}

fn node(who: Who) -> Outcome<()> {
    busy(who, &["--contain"], "programs", &["node", "/opt/subjects/busy.js", "PORT"])
}

/// The files are saved with the generation, in the container's own memory file system; one of them is mapped, shared. A
/// database whose file has another inode number than the one that was opened is written to no more.
fn sqlite_in_memory(who: Who) -> Outcome<()> {
    for mode in ["delete", "wal"] {
        let program = ["python3", "/opt/subjects/database.py", "PORT", "/tmp/numbers", mode];
        busy(who, &["--contain"], "any", &program).map_err(|why| format!("{mode}: {why}"))?;
    }
    Ok(())
}

/// The files are the host's, who goes on: what is saved fits to them where it was stopped in the same step.
fn sqlite_on_a_disk(who: Who) -> Outcome<()> {
    for mode in ["delete", "wal"] {
        let env = Env::new(who)?;
        let bind = format!("{}:/srv", env.make_dir("work")?.display());
        let words = ["python3", "/opt/subjects/database.py", "PORT", "/srv/numbers", mode];
        let job = Job::within(env, "native", &["-B", &bind], "any", &words)?;
        for n in 1..=GENERATIONS {
            well(job.port)?;
            assert_eq!(post(job.port, "1")?, n.to_string());
            job.env.ok(&["checkpoint", "instance", "--stop", "job"])?;
            job.start_again()?;
            assert_eq!(get(job.port, "/")?, n.to_string());
            well(job.port)?;
        }
        job.env.finish()?;
    }
    Ok(())
}

/// A program that holds a sum and tells how it is.
fn busy(who: Who, flags: &[&str], image: &str, words: &[&str]) -> Outcome<()> {
    let job = Job::with(NATIVE.0, who, flags, image, words)?;
    let mut sum = 0;
    for n in 1..=GENERATIONS {
        sum += n;
        assert_eq!(post(job.port, &n.to_string())?, sum.to_string());
        well(job.port)?;
        job.save_between_requests()?;
        well(job.port)?;
        post(job.port, "1000")?;
        job.restart()?;
        assert_eq!(get(job.port, "/")?, sum.to_string());
        well(job.port)?;
    }
    job.env.finish()
}

/// Whatever a generation loses or adds, a hundred of them show: threads, timers, a file, a sum.
fn a_hundred_generations(who: Who) -> Outcome<()> {
    let job = Job::with(NATIVE.0, who, &[], "any", &["/opt/subjects/bin/busy-rust", "PORT"])?;
    for n in 1..=100 {
        assert_eq!(post(job.port, "1")?, n.to_string());
        job.save_between_requests()?;
        let engine = &job.env.newest("job")?["report"]["facts"]["engine"];
        assert_eq!(engine["mode"], if n % 4 < 2 { "fork" } else { "plain" }, "generation {n}: {engine}");
        post(job.port, "1000")?;
        job.env.ok(&["instance", "stop", "job"])?;
        let restart = if n % 2 == 0 { "restart=copy" } else { "restart=map" };
        let next = if (n + 1) % 4 < 2 { "capture=fork" } else { "capture=plain" };
        job.start_with(&["--backend-option", restart, "--backend-option", next])?;
        assert_eq!(get(job.port, "/")?, n.to_string());
        well(job.port).map_err(|why| format!("generation {n}: {why}\n{}", looked_at(&job.env)))?;
    }
    assert_eq!(job.env.newest("job")?["generation"], 100);
    job.env.finish()
}

/// What every thread of the application does, and what it said.
fn looked_at(env: &Env) -> String {
    let script = "for t in /proc/100/task/*; do echo \"${t##*/} $(cat $t/comm) $(cat $t/syscall) $(cat $t/wchan) \
                  $(grep -h State $t/status)\"; done";
    let run = |words: &[&str]| env.stasis(words).map_or_else(|why| why.to_string(), |run| run.out + &run.err);
    run(&["exec", "instance://job", "sh", "-c", script]) + &run(&["instance", "logs", "job"])
}

/// All of it goes on, and nothing is wrong.
fn well(port: u16) -> Outcome<()> {
    let rounds = || -> Outcome<Vec<u64>> {
        Ok(get(port, "/rounds")?.split_whitespace().map(str::parse).collect::<Result<_, _>>()?)
    };
    let (before, deadline) = (rounds()?, Instant::now() + PATIENCE);
    loop {
        let (now, found) = (rounds()?, get(port, "/check")?);
        if found != "good" {
            return Err(format!("it tells {found:?}").into());
        }
        if !before.is_empty() && before.iter().zip(&now).all(|(before, now)| *now >= before + 5) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!("a part of it stands still: {before:?}, then {now:?}").into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What Redis answers to one line, in a connection of its own.
fn redis(port: u16, line: &str) -> Outcome<String> {
    let deadline = Instant::now() + PATIENCE;
    let mut stream = loop {
        match TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            other => break other?,
        }
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "{line}\r\n")?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(answer.trim_end().to_owned())
}

/// A client that asks with numbers from `first` on, one connection each, until it is told to stop.
struct Client {
    stop: AtomicBool,
    /// The last number that was answered.
    answered: AtomicU64,
}

/// What `ask` gets while `meanwhile` happens; the numbers answered before and after it.
fn under_load(
    first: u64,
    ask: impl Fn(u64) -> Outcome<()> + Sync,
    meanwhile: impl FnOnce() -> Outcome<()>,
) -> Outcome<(u64, u64)> {
    let client = Client { stop: AtomicBool::new(false), answered: AtomicU64::new(first - 1) };
    let answered = || client.answered.load(Ordering::SeqCst);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            for number in first.. {
                if client.stop.load(Ordering::SeqCst) {
                    break;
                }
                ask(number).map_err(|why| format!("request {number}: {why}"))?;
                client.answered.store(number, Ordering::SeqCst);
                // A moment without any connection.
                std::thread::sleep(Duration::from_millis(if number % 20 == 0 { 200 } else { 1 }));
            }
            Ok::<(), String>(())
        });
        let some = |more: u64| -> Outcome<u64> {
            let (from, deadline) = (answered(), Instant::now() + PATIENCE);
            while answered() < from + more && !asking.is_finished() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(2));
            }
            Ok(answered())
        };
        let before = some(50)?;
        let done = meanwhile();
        let after = some(50);
        client.stop.store(true, Ordering::SeqCst);
        asking.join().map_err(|_| "the client panicked")??;
        done?;
        Ok((before, after?))
    })
}

/// Every key that was acknowledged before the capture is there, and none that came after it; nothing is there twice.
fn redis_under_load(who: Who) -> Outcome<()> {
    let program = "exec redis-server --bind 127.0.0.1 --port \"$1\" --dir /tmp --save '' --appendonly yes \
                   --hz 100 --activerehashing yes --io-threads 2 --io-threads-do-reads yes";
    let job = Job::with(NATIVE.0, who, &["--contain"], "programs", &["sh", "-c", program, "sh", "PORT"])?;
    let mut first = 1;
    for _ in 0..GENERATIONS {
        let set = |number: u64| match redis(job.port, &format!("SET k{number} {}", number * 7))?.as_str() {
            "+OK" if redis(job.port, "INCR all")? == format!(":{number}") => Ok(()),
            other => Err(format!("{other:?}").into()),
        };
        let (before, after) = under_load(first, set, || job.save_between_requests())?;
        job.restart()?;
        let all: u64 = redis(job.port, "INCRBY all 0")?.trim_start_matches(':').parse()?;
        assert!((before..=after).contains(&all), "{all} of {before} to {after}");
        let script = "for n = 1, tonumber(ARGV[1]) do \
                      if tonumber(redis.call('get', 'k' .. n)) ~= 7 * n then return -n end end \
                      return redis.call('dbsize')";
        // One key more where it was saved between a key and the count of all.
        let found = redis(job.port, &format!("EVAL \"{script}\" 0 {all}"))?;
        assert!([all + 1, all + 2].map(|n| format!(":{n}")).contains(&found), "{found} of {all}");
        // A child of its own and a thread in the background still do their work.
        assert_eq!(redis(job.port, "BGREWRITEAOF")?, "+Background append only file rewriting started");
        let deadline = Instant::now() + PATIENCE;
        let told = || job.env.ok(&["instance", "logs", "job"]).map(|run| run.out);
        while !told()?.contains("Background AOF rewrite finished successfully") {
            assert!(Instant::now() < deadline, "{}", told()?);
            std::thread::sleep(Duration::from_millis(10));
        }
        first = all + 1;
    }
    job.env.finish()
}

/// Pages are what they are, requests are counted without a gap, and the master still sees to its workers.
fn nginx_under_load(who: Who) -> Outcome<()> {
    let program = "sed \"s,PORT,$1,; s,DIR,/tmp,\" /opt/subjects/nginx.conf > /tmp/nginx.conf; \
                   exec nginx -e stderr -c /tmp/nginx.conf";
    let job = Job::with(NATIVE.0, who, &["--contain"], "programs", &["sh", "-c", program, "sh", "PORT"])?;
    let page = std::fs::read_to_string(job.env.site.image("programs").join("opt/subjects/busy.rs"))?;
    let fetch = |_| match get(job.port, "/busy.rs")? {
        found if found == page => Ok(()),
        found => Err(format!("{} bytes of {}", found.len(), page.len()).into()),
    };
    for _ in 0..GENERATIONS {
        let counted = requests(job.port)?;
        let (before, after) = under_load(counted + 1, fetch, || job.save_between_requests())?;
        job.restart()?;
        let now = requests(job.port)?;
        assert!((before + 1..=after + 2).contains(&now), "{now} of {before} to {after}");
        under_load(now + 1, fetch, || Ok(()))?;
        let workers = workers(&job)?;
        job.env.ok(&["exec", "instance://job", "sh", "-c", "kill -HUP $(cat /tmp/nginx.pid)"])?;
        let deadline = Instant::now() + PATIENCE;
        while self::workers(&job)?.split(' ').any(|pid| workers.split(' ').any(|old| old == pid)) {
            assert!(Instant::now() < deadline, "the workers are still {workers}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    job.env.finish()
}

/// How many requests nginx has counted with this one.
fn requests(port: u16) -> Outcome<u64> {
    let status = get(port, "/status")?;
    let line = status.lines().nth(2).ok_or("no third line")?;
    Ok(line.split_whitespace().nth(2).ok_or("no third number")?.parse()?)
}

/// The pids of nginx's workers, in the container.
fn workers(job: &Job) -> Outcome<String> {
    let script = "for p in /proc/[0-9]*; do \
                  case \"$(tr '\\0' ' ' < $p/cmdline)\" in *'worker process'*) echo ${p#/proc/};; esac; done";
    let out = job.env.ok(&["exec", "instance://job", "sh", "-c", script])?.out;
    let pids: Vec<&str> = out.split_whitespace().collect();
    if pids.is_empty() { Err("nginx has no worker".into()) } else { Ok(pids.join(" ")) }
}
