//! `dchain-lab`: long seeded simulations for those who work on deltachain.
fn main() {}
