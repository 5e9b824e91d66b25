//! The executable: calls the library.

fn main() {}
