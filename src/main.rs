//! The executable: calls the library.

fn main() -> std::process::ExitCode {
    floe::main(std::env::args_os().collect())
}
