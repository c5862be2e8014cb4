//! The `stasis` command. The same binary is started again as init and as worker.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(u8::try_from(stasis::run(std::env::args_os().collect())).unwrap_or(255))
}
