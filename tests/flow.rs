//! What must work.

mod foreground;
mod programs;
mod terminals;
mod transcript;
