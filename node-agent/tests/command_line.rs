//! The program's command line, read by the program itself.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::process::Command;

/// Whoever cleans up in an agent's pod has the agent's environment. F135, and leaving by any road.
#[test]
fn a_cleanup_asks_for_nothing_that_only_an_agent_needs() {
    let place = std::env::temp_dir().join(format!("keelson-cleanup-{}", std::process::id()));
    let (pins, state) = (place.join("bpf"), place.join("run"));
    for directory in [&pins, &state] {
        std::fs::create_dir_all(directory).unwrap();
    }
    let cleanup = Command::new(env!("CARGO_BIN_EXE_keelson-node-agent"))
        .arg("cleanup")
        .arg("--bpf-dir")
        .arg(&pins)
        .arg("--runtime-dir")
        .arg(&state)
        .env("NODE_NAME", "n1")
        .env("RUST_LOG", "info")
        .env("KEELSON_INSTANCE", "here")
        .output()
        .expect("the program starts");
    let said = String::from_utf8_lossy(&cleanup.stderr);
    assert!(cleanup.status.success(), "{said}");
    assert!(!pins.exists() && !state.exists(), "{said}");
    std::fs::remove_dir_all(&place).unwrap();
}

#[test]
fn an_agent_that_is_told_too_little_says_what_is_missing() {
    let agent = Command::new(env!("CARGO_BIN_EXE_keelson-node-agent"))
        .env("NODE_NAME", "n1")
        .output()
        .expect("the program starts");
    let said = String::from_utf8_lossy(&agent.stderr);
    assert_eq!(agent.status.code(), Some(2), "{said}");
    assert!(said.contains("--controller <CONTROLLER>"), "{said}");
    assert!(!said.contains("--node <NODE>\n"), "{said}");
}
