//! `cargo xtask ... | head`: whoever closes the pipe gets no more lines, and nothing else happens.

use std::process::{Command, Stdio};

#[test]
fn a_closed_pipe_ends_no_command() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["lint", "tidy"])
        .stdout(writer)
        .stderr(Stdio::piped())
        .output()
        .expect("runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
    assert!(!said.contains("panicked"), "{said}");
}
