#![allow(dead_code)]
mod preload;
mod elf;
