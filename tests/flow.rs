//! What must work.

mod criu;
mod foreground;
mod images;
mod programs;
mod terminals;
mod transcript;
