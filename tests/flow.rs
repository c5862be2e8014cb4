//! What must work.

mod attributes;
mod bootstrap;
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
mod progress;
mod real;
mod scripts;
mod terminals;
mod transcript;
