//! What must work.

mod criu;
mod engine;
mod foreground;
mod gpu;
mod images;
mod native;
mod programs;
mod terminals;
mod transcript;
