//! Whether what the node's page of health says is said of this agent. Pods on the node's network share the address of that page, so
//! while a new agent gets ready its kubelet is answered by the agent in charge, and the rollout would end that one too early.

use std::{fs, path::Path};

use anyhow::bail;

use crate::{
    agent::config::StartedArgs,
    succession::{Lock, Post},
};

/// Ends well unless another instance is in charge. Where nobody is, nobody else answers.
///
/// # Errors
/// Another one is.
pub fn run(args: &StartedArgs) -> anyhow::Result<()> {
    let Some(pid) = Lock::holder(&args.runtime_dir, Post::InCharge) else {
        return Ok(());
    };
    // An agent that has ended leaves its number behind.
    let environment = fs::read(Path::new("/proc").join(pid.to_string()).join("environ"));
    match instance(&environment.unwrap_or_default()) {
        Some(theirs) if theirs != args.instance.as_bytes() => {
            bail!("another agent is in charge, process {pid}")
        }
        _ => Ok(()),
    }
}

/// Which instance a process is of, by its environment as the kernel shows it (proc(5)).
fn instance(environment: &[u8]) -> Option<&[u8]> {
    let mut variables = environment.split(|byte| *byte == 0);
    variables.find_map(|variable| variable.strip_prefix(b"KEELSON_INSTANCE="))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(written: &str, own: &str) -> anyhow::Result<()> {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("agent.lock"), written).unwrap();
        run(&StartedArgs {
            runtime_dir: directory.path().to_owned(),
            instance: own.to_owned(),
        })
    }

    #[test]
    fn another_instance_that_is_in_charge_answers_for_itself_alone() {
        let mut other = std::process::Command::new("sleep")
            .arg("60")
            .env("KEELSON_INSTANCE", "old")
            .spawn()
            .unwrap();
        let pid = format!("{}\n", other.id());
        // The new program has its environment as soon as it runs.
        while instance(&fs::read(format!("/proc/{}/environ", other.id())).unwrap()) != Some(b"old")
        {
            std::thread::yield_now();
        }
        let said = asked(&pid, "new").map_err(|error| error.to_string());
        let own = asked(&pid, "old");
        other.kill().unwrap();
        other.wait().unwrap();
        assert_eq!(
            said.unwrap_err(),
            format!("another agent is in charge, process {}", pid.trim())
        );
        own.unwrap();
        asked(&pid, "new").expect("it has ended");
        asked("", "new").expect("nobody is");
    }

    #[test]
    fn the_instance_is_one_variable_of_several() {
        let found = instance(b"PATH=/bin\0KEELSON_INSTANCE=u1\0A=KEELSON_INSTANCE=u2\0");
        assert_eq!(found, Some(&b"u1"[..]));
        assert_eq!(instance(b"PATH=/bin\0"), None);
    }
}
