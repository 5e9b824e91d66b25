//! Embeds the target triple, so that `floe --version` tells which board the executable is for; leaves the tables for unwinding
//! out of static executables (a tenth of their size): with `panic=abort` nothing ever reads them.

fn main() {
    let target = std::env::var("TARGET").unwrap_or_default();
    println!("cargo:rustc-env=FLOE_TARGET={target}");
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|found| found == value);
    if is("CARGO_CFG_TARGET_ENV", "musl") && is("PROFILE", "release") {
        let root = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo:rustc-link-arg-bins=-T{root}/.cargo/no-unwind.ld");
    }
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=.cargo/no-unwind.ld");
}
