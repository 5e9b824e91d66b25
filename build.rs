//! Embeds the target triple, so that `floe --version` tells which board the executable is for.

fn main() {
    let target = std::env::var("TARGET").unwrap_or_default();
    println!("cargo:rustc-env=FLOE_TARGET={target}");
    println!("cargo:rerun-if-changed=build.rs");
}
