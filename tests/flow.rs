//! What must work.

mod build;
mod clocks;
mod criu;
mod engine;
mod foreground;
mod gpu;
mod images;
mod native;
mod oci;
mod programs;
mod real;
mod scripts;
mod terminals;
mod transcript;
