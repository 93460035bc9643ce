//! Captures compared, told, cut and said again, by the program as a user meets it and by what it is
//! made of.

#![allow(clippy::unwrap_used)]

mod cookies;
mod diff;
mod ftp;
mod made;
mod pcap;
mod replay;
mod streams;

use std::path::Path;
use std::process::{Command, Output};

fn shadowvm(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_shadowvm")).current_dir(dir).args(args).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}
