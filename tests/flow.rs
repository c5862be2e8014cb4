//! What must work.

mod build;
mod criu;
mod foreground;
mod oci;
mod programs;
mod terminals;
mod transcript;
