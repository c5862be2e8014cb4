//! A command beside the application of a running instance: `exec|run|shell instance://NAME`.

use crate::cli::Session;
use crate::cli::action_args::ActionArgs;
use crate::cli::instance::running;
use crate::cli::teller::Terminal;
use crate::error::{Error, Result};
use crate::monitor::client;
use crate::monitor::control::{Reply, Request};
use crate::monitor::{foreground, serve};
use crate::name::InstanceName;
use crate::spec::identity::HostFacts;
use crate::spec::resolve::Action;
use crate::sys::channel::Channel;
use crate::sys::terminal;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsFd, OwnedFd};

/// Joins.
///
/// # Errors
/// Why the command was not started.
pub fn join(session: &Session, name: &str, action: &Action, args: &ActionArgs) -> Result<i32> {
    if args.wants_engine() {
        return Err(Error::usage("a command beside an instance cannot be saved apart from it")
            .help(format!("save the instance: stasis checkpoint instance {name}")));
    }
    if args.app.is_some() {
        return Err(Error::usage(
            "--app chooses what an instance is started with, and this one runs already",
        )
        .help("start another one: stasis instance start --app NAME IMAGE OTHER"));
    }
    let name = InstanceName::new(name)?;
    let seen = running(session, &name)?;
    let facts = HostFacts::from_process();
    let argv = match action {
        Action::Exec { argv } => argv.clone(),
        Action::Run { args } => [vec!["/.singularity.d/runscript".to_owned()], args.clone()].concat(),
        Action::Shell => vec!["/bin/sh".to_owned()],
        Action::Start { .. } | Action::InstanceRun { .. } => {
            return Err(Error::usage("an instance is started from an image, not from an instance"));
        }
    };
    if argv.is_empty() {
        return Err(
            Error::usage("exec needs a command").help("stasis exec instance://NAME COMMAND [ARGUMENT...]")
        );
    }
    let signals = serve::signals(true)?;
    let channel = client::connect(name.as_str(), &seen.record.control)?;
    let size =
        (facts.stdin_tty && facts.stdout_tty).then(|| terminal::size(std::io::stdin().as_fd())).flatten();
    let request =
        Request::Exec { argv, env: environment(&facts, args, name.as_str()), cwd: facts.cwd.clone(), size };
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let streams = if size.is_some() { vec![] } else { vec![stdin.as_fd(), stdout.as_fd(), stderr.as_fd()] };
    let teller = Terminal::default();
    let (reply, mut fds) = client::ask(&channel, &request, &streams, &teller)?;
    let (Reply::ExecStarted, master) = (reply, fds.pop()) else {
        return Err(Error::new("the monitor gave an answer that does not fit"));
    };
    let relayed = master.as_ref().map(foreground::relay).transpose()?;
    let code = wait(&channel, &signals, master.as_ref());
    if let Some((raw, output)) = relayed {
        drop(master);
        let _ = output.join();
        drop(raw);
    }
    code
}

/// The environment of a command beside the application: the caller's, as for `exec` of an image.
fn environment(facts: &HostFacts, args: &ActionArgs, name: &str) -> Vec<(String, String)> {
    let mut env = if args.cleanenv { Default::default() } else { facts.env.clone() };
    env.retain(|key, _| {
        !key.starts_with("STASIS_")
            && !key.starts_with("APPTAINER")
            && !key.starts_with("SINGULARITY")
            && key != "LD_PRELOAD"
    });
    if args.cleanenv {
        env.insert(
            "PATH".to_owned(),
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
        );
        env.insert("HOME".to_owned(), facts.home.to_string_lossy().into_owned());
    }
    for pair in args.env.iter().flat_map(|e| e.split(',')) {
        if let Some((key, value)) = pair.split_once('=') {
            env.insert(key.to_owned(), value.to_owned());
        }
    }
    env.insert("STASIS_INSTANCE".to_owned(), name.to_owned());
    env.insert("APPTAINER_INSTANCE".to_owned(), name.to_owned());
    env.into_iter().collect()
}

fn wait(channel: &Channel, signals: &nix::sys::signalfd::SignalFd, master: Option<&OwnedFd>) -> Result<i32> {
    loop {
        let mut watched = [
            PollFd::new(channel.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut watched, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(Error::new("cannot wait for the command").because(e.desc())),
        }
        let answered = watched[0].any().unwrap_or(false);
        while let Ok(Some(info)) = signals.read_signal() {
            let number = i32::try_from(info.ssi_signo).unwrap_or(0);
            match (number, master, terminal::size(std::io::stdin().as_fd())) {
                (libc::SIGWINCH, Some(master), Some(size)) => {
                    // A terminal that is gone has no size.
                    let _ = terminal::set_size(master.as_fd(), size);
                }
                (libc::SIGWINCH, ..) => {}
                _ => channel
                    .send(&Request::Signal(number))
                    .map_err(|e| Error::new("cannot talk to the monitor").because(&e))?,
            }
        }
        if answered {
            return match client::answer(channel, &Terminal::default())? {
                (Reply::ExecEnded(ending), _) => Ok(ending.code()),
                _ => Err(Error::new("the monitor gave an answer that does not fit")),
            };
        }
    }
}

/// Whether standard input is the empty device, or closed.
pub fn stdin_is_empty() -> bool {
    use std::os::unix::fs::MetadataExt;
    let null = std::fs::metadata("/dev/null").map(|m| m.rdev());
    match (std::fs::metadata("/proc/self/fd/0"), null) {
        (Ok(stdin), Ok(null)) => stdin.rdev() == null,
        (Err(_), _) => true,
        _ => false,
    }
}
