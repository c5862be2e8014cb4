//! What must work.

mod criu;
mod foreground;
mod programs;
mod terminals;
mod transcript;
