//! Real programs in network namespaces around the real gateway.

fn main() {}
