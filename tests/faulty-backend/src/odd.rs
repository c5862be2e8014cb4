//! What `probe` does with the option `fault`: the odd behaviours that the worker has to withstand.

#![allow(
    unsafe_code,
    clippy::panic,
    clippy::exit,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "misbehaving is what this module is for"
)]

use stasis_plugin_api::prelude::*;
use std::io::Read;
use std::os::fd::AsFd;
use std::time::Duration;

/// The words of the option.
pub(crate) const WORDS: &[&str] = &[
    "none", "panic", "hang", "obey", "crash", "exit", "error", "abort", "print", "log", "request", "keep",
    "kept", "thread", "flood",
];

/// Does it; what is seen on the way becomes the probe's reason.
pub(crate) fn behave(host: &mut Host<'_>, word: &str) -> Result<Option<String>> {
    match word {
        "panic" => panic!("faulty on purpose"),
        "hang" => {
            println!("about to hang");
            loop {
                std::thread::sleep(Duration::from_secs(3600));
            }
        }
        "obey" => loop {
            host.check("waiting for nothing")?;
            std::thread::sleep(Duration::from_millis(5));
        },
        "crash" => {
            eprintln!("about to crash");
            // SAFETY: none: the point is the signal that comes of it.
            unsafe { std::ptr::null_mut::<u32>().write_volatile(1) };
            Ok(None)
        }
        "abort" => std::process::abort(),
        "exit" => std::process::exit(7),
        "error" => Err(BackendError::new(kind::UNUSABLE, "the engine is not there")
            .because("nobody installed it")
            .help("install it")
            .engine_output("E: no")),
        "flood" => loop {
            tracing::info!("again");
            println!("{}", "x".repeat(1000));
        },
        _ => talk(host, word),
    }
}

fn talk(host: &mut Host<'_>, word: &str) -> Result<Option<String>> {
    match word {
        "print" => {
            println!("PRINTED");
            eprintln!("PRINTED TOO");
        }
        "log" => {
            tracing::warn!(pid = 5, "something odd");
            tracing::debug!("detail");
        }
        "request" => {
            let command =
                RunInside { argv: vec!["/bin/echo".into()], timeout_ms: 3_600_000, ..Default::default() };
            let output = host.run_inside(&command)?;
            host.progress(1, 2, "half");
            let unknown = host.extension("x-none", &serde_json::Value::Null).map_err(|e| e.kind);
            return Ok(Some(format!("{} {unknown:?}", output.stdout)));
        }
        "keep" => {
            let cannot = |e: std::io::Error| BackendError::failed("opening a file").because(e);
            let file = std::fs::File::open("/etc/hostname").or_else(|_| std::fs::File::open("/proc/version"));
            host.keep_fd("one", file.map_err(cannot)?.as_fd())?;
            host.remember("kept", "one");
        }
        "kept" => {
            let name = host.state("kept").unwrap_or("?").to_owned();
            let fd = host.kept_fd(&name).ok_or_else(|| BackendError::failed("nothing kept"))?;
            let mut text = String::new();
            let read = std::fs::File::from(fd).read_to_string(&mut text);
            read.map_err(|e| BackendError::failed("reading").because(e))?;
            return Ok(Some(text));
        }
        "thread" => {
            let chatter = |n: i32| (0..50).for_each(|m| tracing::info!(n, m, "from a thread"));
            let all: Vec<_> = (0..8).map(|n| std::thread::spawn(move || chatter(n))).collect();
            (0..50).for_each(|n| host.progress(n, 50, "counting"));
            all.into_iter().for_each(|t| drop(t.join()));
        }
        _ => {
            let context = host.context();
            let (scratch, path) = (context.scratch.is_dir(), context.search_path.is_empty());
            return Ok(Some(format!("{scratch:?} {} {path}", !host.time_left().is_zero())));
        }
    }
    Ok(None)
}
