//! Compiles the kernel half for the `bpfel-unknown-none` target, so that the agent carries it.
//!
//! Needs `rust-src`, bpf-linker and the LLVM it was built with; `cargo xtask setup` installs them.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, exit},
};

const PROGRAMS: [&str; 3] = ["node", "pod", "shared"];
/// The agent's features that the kernel half has too, by its own names.
const FEATURES: [(&str, &str); 2] = [("CARGO_FEATURE_NEXT_LAYOUT", "next-layout"), (LOG, "log")];
const LOG: &str = "CARGO_FEATURE_EBPF_LOG";
const SETUP: &str = "`cargo xtask setup` installs what the build needs";
const TARGET: &str = "bpfel-unknown-none";
const FLAGS: [&str; 3] = ["-Clinker=bpf-linker", "-Cdebuginfo=2", "-Clink-arg=--btf"];

fn main() {
    if env::var_os(LOG).is_some() && variable("PROFILE") == "release" {
        fail(
            "the kernel half logs in debug builds only: build without `--release` or without the feature `ebpf-log`",
        );
    }
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR")).join("..");
    for source in ["ebpf", "crates/abi"] {
        println!("cargo::rerun-if-changed={}", root.join(source).display());
    }
    println!("cargo::rerun-if-env-changed=LLVM_PREFIX");
    let out = PathBuf::from(variable("OUT_DIR"));
    let target_dir = out.join("ebpf");
    build(&root, &target_dir);
    for program in PROGRAMS {
        let built = target_dir.join(TARGET).join("release").join(program);
        if let Err(error) = std::fs::copy(&built, out.join(format!("{program}.bpf.o"))) {
            fail(&format!(
                "the eBPF program {} was not built: {error}; {SETUP}",
                built.display()
            ));
        }
    }
}

fn build(root: &Path, target_dir: &Path) {
    let mut cargo = Command::new(variable("CARGO"));
    cargo
        .current_dir(root)
        .args([
            "build",
            "--package",
            "ebpf",
            "--bins",
            "--release",
            "-Z",
            "build-std=core",
        ])
        .args(["--target", TARGET, "--target-dir"])
        .arg(target_dir)
        .args(features())
        // Flags and wrappers of the outer build are for the host.
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTFLAGS")
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\u{1f}"));
    // bpf-linker and rustc use different releases of LLVM.
    let prefix = env::var("LLVM_PREFIX").unwrap_or_else(|_| "/usr/lib/llvm-22".to_owned());
    let path = env::var("PATH").unwrap_or_default();
    cargo
        .env("PATH", format!("{prefix}/bin:{path}"))
        .env("LLVM_PREFIX", &prefix);
    match cargo.status() {
        Ok(status) if status.success() => {}
        Ok(status) => fail(&format!(
            "building the eBPF programs failed ({status}); {SETUP}"
        )),
        Err(error) => fail(&format!(
            "cannot run cargo for the eBPF programs: {error}; {SETUP}"
        )),
    }
}

/// Both halves have the same layout, and both or none have log lines.
fn features() -> [String; 2] {
    let on = FEATURES
        .iter()
        .filter(|(variable, _)| env::var_os(variable).is_some());
    let names: Vec<&str> = on.map(|(_, feature)| *feature).collect();
    ["--features".to_owned(), names.join(",")]
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| fail(&format!("cargo did not set {name}")))
}

fn fail(what: &str) -> ! {
    println!("cargo::error={what}");
    exit(1)
}
