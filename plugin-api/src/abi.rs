//! The binary boundary: the only place of this crate with `unsafe` and the only one that knows
//! `abi_stable`. Authors meet it through [`export_backend!`](crate::export_backend) alone.
//!
//! Across it go two prefix types that may grow at their ends and texts that hold JSON. No enum with
//! data crosses, because those can never grow.

#![allow(unsafe_code, reason = "descriptors and the host's pointer cross the boundary here")]
#![allow(non_local_definitions, non_camel_case_types, reason = "abi_stable 0.11 generates both")]
#![allow(
    missing_docs,
    missing_debug_implementations,
    reason = "abi_stable 0.11 generates undocumented items"
)]
#![allow(unreachable_pub, reason = "abi_stable 0.11 generates public items")]

use crate::backend::CheckpointBackend;
use crate::error::{BackendError, Result, kind};
use crate::host::{CallContext, EngineState, Host, HostServices};
use abi_stable::StableAbi;
use abi_stable::std_types::{RResult, RStr, RString};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

#[doc(hidden)]
pub use abi_stable;

/// An opaque pointer of the host's, handed back to it with every call.
#[repr(transparent)]
#[derive(StableAbi, Clone, Copy)]
pub struct HostPointer(pub *const ());

// SAFETY: the plugin never looks behind it; the host promises a value that may be used from any
// thread until the worker process ends.
unsafe impl Send for HostPointer {}
// SAFETY: as above.
unsafe impl Sync for HostPointer {}

/// The host's services. Grows at the end; everything after `kept_fd` has a default in [`Crossing`].
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = HostTable_Ref)))]
#[sabi(missing_field(option))]
pub struct HostTable {
    /// level (1 error .. 5 trace), target, message.
    pub log: extern "C" fn(HostPointer, u8, RStr<'_>, RStr<'_>),
    /// name, JSON; answers JSON or a [`BackendError`] as JSON.
    pub request: extern "C" fn(HostPointer, RStr<'_>, RStr<'_>) -> RResult<RString, RString>,
    /// Whether the caller has given up.
    pub cancelled: extern "C" fn(HostPointer) -> bool,
    /// name, descriptor (stays the caller's); 0 or an errno.
    pub keep_fd: extern "C" fn(HostPointer, RStr<'_>, i32) -> i32,
    /// name; a descriptor that the caller owns, or -1.
    #[sabi(last_prefix_field)]
    pub kept_fd: extern "C" fn(HostPointer, RStr<'_>) -> i32,
}

/// The host as a plugin sees it. Valid until the worker process ends.
#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct HostHandle {
    pub pointer: HostPointer,
    pub table: HostTable_Ref,
}

/// What a plugin exports. Grows at the end.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = BackendModule_Ref)))]
#[sabi(missing_field(option))]
pub struct BackendModule {
    /// The version of the contract that the plugin was built against.
    pub api_version: extern "C" fn() -> RString,
    /// The [`Descriptor`](crate::descriptor::Descriptor) as JSON.
    pub describe: extern "C" fn() -> RResult<RString, RString>,
    /// host, method, [`Call`] as JSON; answers [`Answer`] or a [`BackendError`] as JSON.
    #[sabi(last_prefix_field)]
    pub invoke: extern "C" fn(HostHandle, RStr<'_>, RStr<'_>) -> RResult<RString, RString>,
}

impl abi_stable::library::RootModule for BackendModule_Ref {
    abi_stable::declare_root_module_statics! {BackendModule_Ref}
    const BASE_NAME: &'static str = "stasis_backend";
    const NAME: &'static str = "stasis_backend";
    const VERSION_STRINGS: abi_stable::sabi_types::VersionStrings = abi_stable::package_version_strings!();
}

/// One call as it crosses.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Call {
    pub context: CallContext,
    pub request: Value,
}

/// One answer as it crosses.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Answer {
    pub state: EngineState,
    pub reply: Value,
}

/// The services across the boundary.
struct Crossing(HostHandle);

impl HostServices for Crossing {
    fn request(&self, name: &str, payload: &Value) -> Result<Value> {
        let payload = payload.to_string();
        match self.0.table.request()(self.0.pointer, RStr::from(name), RStr::from(payload.as_str())) {
            RResult::ROk(text) => serde_json::from_str(&text).map_err(|e| unclear(name, &e)),
            RResult::RErr(text) => Err(error_from(&text)),
        }
    }

    fn cancelled(&self) -> bool {
        self.0.table.cancelled()(self.0.pointer)
    }

    fn keep_fd(&self, name: &str, fd: BorrowedFd<'_>) -> Result<()> {
        match self.0.table.keep_fd()(self.0.pointer, RStr::from(name), fd.as_raw_fd()) {
            0 => Ok(()),
            errno => Err(BackendError::failed(format!("keeping descriptor \"{name}\""))
                .because(std::io::Error::from_raw_os_error(errno))),
        }
    }

    fn kept_fd(&self, name: &str) -> Option<OwnedFd> {
        let fd = self.0.table.kept_fd()(self.0.pointer, RStr::from(name));
        // SAFETY: the host hands over a fresh descriptor that nobody else owns, or -1.
        (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

fn unclear(what: &str, e: &serde_json::Error) -> BackendError {
    BackendError::new(kind::PROTOCOL, format!("the data of \"{what}\" cannot be understood")).because(e)
}

/// An error from its text; a text that is none becomes one.
pub fn error_from(text: &str) -> BackendError {
    serde_json::from_str(text).unwrap_or_else(|_| BackendError::new(kind::PROTOCOL, text))
}

fn error_text(error: &BackendError) -> RString {
    serde_json::to_string(error).unwrap_or_else(|_| error.to_string()).into()
}

/// The message of the panic that was caught last, with its place.
static LAST_PANIC: Mutex<String> = Mutex::new(String::new());

fn guarded<T>(doing: &str, f: impl FnOnce() -> Result<T>) -> Result<T> {
    // Each plugin has a standard library of its own, hence a hook of its own.
    std::panic::set_hook(Box::new(|info| {
        let message = info.payload_as_str().unwrap_or("no message");
        let place = info.location().map(|l| format!(" ({}:{})", l.file(), l.line())).unwrap_or_default();
        if let Ok(mut last) = LAST_PANIC.lock() {
            *last = format!("{message}{place}");
        }
    }));
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|_| {
        let message = LAST_PANIC.lock().map(|m| m.clone()).unwrap_or_default();
        Err(BackendError::new(kind::PANICKED, format!("the backend panicked in {doing}")).because(message))
    })
}

/// The plugin's side of `describe`.
pub fn describe(make: fn() -> Box<dyn CheckpointBackend>) -> RResult<RString, RString> {
    let text = guarded("describe", || {
        serde_json::to_string(&make().describe()).map_err(|e| unclear("describe", &e))
    });
    match text {
        Ok(text) => RResult::ROk(text.into()),
        Err(error) => RResult::RErr(error_text(&error)),
    }
}

/// The plugin's side of every other method.
pub fn invoke(
    make: fn() -> Box<dyn CheckpointBackend>,
    host: HostHandle,
    method: RStr<'_>,
    call: RStr<'_>,
) -> RResult<RString, RString> {
    crate::forward::install(host);
    let answer = guarded(method.as_str(), || {
        let call: Call = serde_json::from_str(call.as_str()).map_err(|e| unclear("call", &e))?;
        let services = Crossing(host);
        let mut lent = Host::new(&services, call.context);
        let reply = dispatch(&*make(), &mut lent, method.as_str(), call.request)?;
        let answer = Answer { state: lent.into_state(), reply };
        serde_json::to_string(&answer).map_err(|e| unclear("answer", &e))
    });
    match answer {
        Ok(text) => RResult::ROk(text.into()),
        Err(error) => RResult::RErr(error_text(&error)),
    }
}

fn dispatch(
    backend: &dyn CheckpointBackend,
    host: &mut Host<'_>,
    method: &str,
    request: Value,
) -> Result<Value> {
    fn typed<Q: for<'de> Deserialize<'de>, A: Serialize>(
        request: Value,
        f: impl FnOnce(Q) -> Result<A>,
    ) -> Result<Value> {
        let request = serde_json::from_value(request).map_err(|e| unclear("request", &e))?;
        serde_json::to_value(f(request)?).map_err(|e| unclear("reply", &e))
    }
    match method {
        "probe" => typed(request, |q| backend.probe(host, &q)),
        "examine" => typed(request, |q| backend.examine(host, &q)),
        "plan_launch" => typed(request, |q| backend.plan_launch(host, &q)),
        "ready" => typed(request, |q| backend.ready(host, &q)),
        "status" => typed(request, |q| backend.status(host, &q)),
        "capture" => typed(request, |q| backend.capture(host, &q)),
        "plan_restart" => typed(request, |q| backend.plan_restart(host, &q)),
        "alive" => typed(request, |q| backend.alive(host, &q)),
        "explain" => typed(request, |q| backend.explain(host, &q)),
        "squash" => typed(request, |q| backend.squash(host, &q)),
        "stop" => typed(request, |q| backend.stop(host, &q)),
        other => match other.strip_prefix("extension:") {
            Some(id) => backend.extension(host, id, &request),
            None => Err(BackendError::new(kind::NOT_IMPLEMENTED, format!("method {other}"))),
        },
    }
}

/// Makes a library a stasis backend. The argument is an expression that makes the value, evaluated
/// once for every call.
///
/// ```
/// # use stasis_plugin_api::prelude::*;
/// # #[derive(Debug)] struct Mine;
/// # impl CheckpointBackend for Mine {
/// #   fn describe(&self) -> Descriptor { unreachable!() }
/// #   fn probe(&self, _: &mut Host<'_>, _: &ProbeRequest) -> Result<Probe> { unreachable!() }
/// #   fn examine(&self, _: &mut Host<'_>, _: &Subject) -> Result<Vec<Finding>> { unreachable!() }
/// #   fn plan_launch(&self, _: &mut Host<'_>, _: &LaunchRequest) -> Result<LaunchPlan> { unreachable!() }
/// #   fn ready(&self, _: &mut Host<'_>, _: &InstanceView) -> Result<ReadyReport> { unreachable!() }
/// #   fn status(&self, _: &mut Host<'_>, _: &InstanceView) -> Result<StatusReport> { unreachable!() }
/// #   fn capture(&self, _: &mut Host<'_>, _: &CaptureRequest) -> Result<CaptureReport> { unreachable!() }
/// #   fn plan_restart(&self, _: &mut Host<'_>, _: &RestartRequest) -> Result<RestartPlan> { unreachable!() }
/// #   fn alive(&self, _: &mut Host<'_>, _: &AliveRequest) -> Result<ReadyReport> { unreachable!() }
/// # }
/// stasis_plugin_api::export_backend!(Mine);
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! export_backend {
    ($make:expr) => {
        #[cfg(panic = "abort")]
        compile_error!("a stasis backend has to be built with panic = \"unwind\": its panics become errors");

        #[doc(hidden)]
        #[allow(
            unsafe_code,
            missing_docs,
            unreachable_pub,
            missing_debug_implementations,
            reason = "the exported symbol of the plugin"
        )]
        mod stasis_backend_export {
            use super::*;
            use $crate::abi::abi_stable::library::{
                __call_root_module_loader, CheckTypeLayout, LibHeader, RootModuleResult,
            };
            use $crate::abi::abi_stable::prefix_type::PrefixTypeTrait as _;
            use $crate::abi::abi_stable::std_types::{RResult, RStr, RString};
            use $crate::abi::{BackendModule, BackendModule_Ref, HostHandle};

            fn make() -> Box<dyn $crate::backend::CheckpointBackend> {
                Box::new($make)
            }
            extern "C" fn api_version() -> RString {
                RString::from($crate::version::API_VERSION)
            }
            extern "C" fn describe() -> RResult<RString, RString> {
                $crate::abi::describe(make)
            }
            extern "C" fn invoke(
                host: HostHandle,
                method: RStr<'_>,
                call: RStr<'_>,
            ) -> RResult<RString, RString> {
                $crate::abi::invoke(make, host, method, call)
            }
            fn export() -> BackendModule_Ref {
                BackendModule { api_version, describe, invoke }.leak_into_prefix()
            }
            extern "C" fn erased() -> RootModuleResult {
                __call_root_module_loader(export)
            }
            // The name under which abi_stable 0.11 looks for a root module. Its own attribute would
            // ask every plugin to depend on abi_stable itself.
            #[unsafe(export_name = "_1as_0lib_1header_0root_bmodule_bloader")]
            pub static HEADER: LibHeader =
                // SAFETY: `erased` makes exactly the type that is named here.
                unsafe { LibHeader::from_constructor::<BackendModule_Ref>(erased, CheckTypeLayout::Yes) };
        }
    };
}
