//! What must work.

mod criu;
mod foreground;
mod native;
mod programs;
mod terminals;
mod transcript;
