//! What must work.

mod criu;
mod foreground;
mod gpu;
mod programs;
mod terminals;
mod transcript;
