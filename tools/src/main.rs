//! `dchain`: the toolbox.
fn main() {}
