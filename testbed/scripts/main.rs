//! Byte-exact scripts against the real kernel's TCP.

fn main() {}
