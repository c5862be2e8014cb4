//! The faults themselves, and the constructor that commits one before anything else of the library runs.

#![allow(unsafe_code, reason = "an ELF constructor is placed by hand")]

use std::time::Duration;

use stasis_plugin_api::prelude::*;

/// The variable that works where no option arrives.
const VARIABLE: &str = "STASIS_FAULTY";

/// What a method has to do itself, after [`commit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Say success and do nothing.
    Lie,
    /// Do it so that it is of no use.
    Corrupt,
}

// SAFETY: the section holds pointers to functions of the C calling convention, called once each at load; this is one.
#[used]
#[unsafe(link_section = ".init_array")]
static AT_LOAD: extern "C" fn() = at_load;

extern "C" fn at_load() {
    match asked("load", None).as_deref() {
        Some("hang") => hang(),
        Some("crash") => std::process::abort(),
        _ => {}
    }
}

/// The fault that is asked for in `method`.
fn asked(method: &str, host: Option<&Host<'_>>) -> Option<String> {
    let mut list = host.map(|host| host.option_list("misbehave")).unwrap_or_default();
    list.extend(std::env::var(VARIABLE).unwrap_or_default().split(',').map(str::to_owned));
    list.iter().find_map(|item| {
        let (fault, place) = item.trim().split_once(':')?;
        (place == method).then(|| fault.to_owned())
    })
}

/// Misbehaves, or tells how to.
pub(crate) fn commit(method: &str, host: Option<&Host<'_>>) -> Result<Option<Fault>> {
    match asked(method, host).as_deref() {
        None => Ok(None),
        Some("lie") => Ok(Some(Fault::Lie)),
        Some("corrupt") => Ok(Some(Fault::Corrupt)),
        Some("error") => Err(BackendError::failed(format!("asked to fail in {method}"))
            .because("the test wants it")
            .help("ask for something else")),
        Some("still") => Err(BackendError::new(kind::STANDS_STILL, format!("asked to fail in {method}"))),
        Some("hang") => hang(),
        Some("crash") => std::process::abort(),
        Some("panic") => fall(method),
        Some("exit") => leave(),
        Some(other) => Err(BackendError::failed(format!("there is no fault {other:?}"))),
    }
}

fn hang() -> ! {
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

#[allow(clippy::panic, reason = "this is what the test asks for")]
fn fall(method: &str) -> ! {
    panic!("asked to panic in {method}")
}

#[allow(clippy::exit, clippy::disallowed_methods, reason = "this is what the test asks for")]
fn leave() -> ! {
    std::process::exit(0)
}
