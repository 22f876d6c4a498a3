//! Compiles the kernel half for the `bpfel-unknown-none` target, so that the agent carries it.
//!
//! Needs `rust-src`, bpf-linker and the LLVM it was built with; `cargo xtask setup` installs them.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, exit},
};

const PROGRAMS: [&str; 3] = ["node", "pod", "veth"];
const TARGET: &str = "bpfel-unknown-none";
const FLAGS: [&str; 3] = ["-Clinker=bpf-linker", "-Cdebuginfo=2", "-Clink-arg=--btf"];

fn main() {
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
                "the eBPF program {} was not built: {error}",
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
        Ok(status) => fail(&format!("building the eBPF programs failed ({status})")),
        Err(error) => fail(&format!("cannot run cargo for the eBPF programs: {error}")),
    }
}

/// Both halves have the same layout.
fn features() -> &'static [&'static str] {
    match env::var_os("CARGO_FEATURE_NEXT_LAYOUT") {
        Some(_) => &["--features", "next-layout"],
        None => &[],
    }
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| fail(&format!("cargo did not set {name}")))
}

fn fail(what: &str) -> ! {
    println!("cargo::error={what}; `cargo xtask setup` installs what the build needs");
    exit(1)
}
