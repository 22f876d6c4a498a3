//! The virtual machine while it runs: its console is read, and it is ended when its time is over.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::{image::Disks, kernel};
use crate::shell;
use crate::test::Totals;

/// What the tests printed, and what those that had failed printed when they were run once more.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) first: Totals,
    pub(crate) again: Option<Totals>,
}

/// Boots, shows the console, and adds up what the tests print.
///
/// # Errors
/// The machine ended before its tests, or its time was over.
pub(crate) fn run(
    kernel: &kernel::Files,
    disks: &Disks,
    limit: Duration,
    place: &Path,
) -> Result<Outcome> {
    println!(
        "booting {} without acceleration: everything takes some 5 to 20 times as long there",
        kernel.release
    );
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-accel", "tcg,thread=multi", "-cpu", "max"])
        .args(["-smp", "2", "-m", "6G", "-nographic", "-no-reboot"])
        .args(["-nic", "none", "-kernel"])
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(&disks.initial)
        .args(["-append", "console=ttyS0 panic=-1 quiet"])
        .arg("-drive")
        .arg(drive(&disks.system))
        .arg("-drive")
        .arg(drive(&disks.programs))
        .current_dir(place)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut machine = Ended(command.spawn().context("starting qemu-system-x86_64")?);
    let output = machine.0.stdout.take().context("its output is a pipe")?;
    let (lines, console) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if lines.send(line).is_err() {
                return;
            }
        }
    });
    let show = |line: &str| println!("{}", shell::dim(line));
    watch(&console, Instant::now() + limit, show)
}

/// Reads the console to the line that says that the tests have ended, and shows each line.
fn watch(console: &Receiver<String>, deadline: Instant, show: impl Fn(&str)) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let line = match console.recv_timeout(left) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => {
                bail!("the virtual machine's time was over before its tests had ended");
            }
            Err(RecvTimeoutError::Disconnected) => {
                bail!("the virtual machine ended before its tests had");
            }
        };
        show(&line);
        let totals = outcome.again.as_mut().unwrap_or(&mut outcome.first);
        totals.add(&line);
        if line.starts_with("keelson: once more") {
            outcome.again = Some(Totals::default());
        }
        if let Some(code) = line.strip_prefix("keelson: ended with ") {
            let last = outcome.again.as_ref().unwrap_or(&outcome.first);
            if code != "0" && last.failed == 0 {
                bail!("the tests ended with {code} in the virtual machine");
            }
            return Ok(outcome);
        }
    }
}

/// The machine's writes are forgotten with it, so that every run begins alike.
fn drive(disk: &Path) -> String {
    format!(
        "file={},if=virtio,format=raw,snapshot=on",
        disk.display().to_string().replace(',', ",,")
    )
}

/// A machine that does not outlive the run.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended by itself, which is as good.
        let _already = self.0.kill().is_err();
        let _unknown = self.0.wait().is_err();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(lines: &[&str]) -> Receiver<String> {
        let (sender, receiver) = mpsc::channel();
        for line in lines {
            sender.send((*line).to_owned()).unwrap();
        }
        receiver
    }

    /// Shows nothing: whoever adds up the results of all tests would count these lines too.
    fn read(lines: &[&str]) -> Result<Outcome> {
        let far = Instant::now() + Duration::from_secs(60);
        watch(&console(lines), far, |_line| {})
    }

    #[test]
    fn a_machine_that_ends_before_its_tests_is_a_failure() {
        let result = "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured";
        assert!(read(&[result]).is_err());
        let ended = read(&[result, "keelson: ended with 0"]).unwrap();
        assert_eq!((ended.first.passed, ended.first.failed), (3, 0));
        assert_eq!(ended.again, None);
        assert!(read(&[result, "keelson: ended with 101"]).is_err());
    }

    #[test]
    fn what_is_run_once_more_is_added_up_by_itself() {
        let lines = [
            "test a::b ... FAILED",
            "test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured",
            "keelson: once more, those that failed",
            "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured",
            "keelson: ended with 0",
        ];
        let outcome = read(&lines).unwrap();
        let again = outcome.again.unwrap();
        assert_eq!((outcome.first.passed, outcome.first.failed), (3, 1));
        assert_eq!((again.passed, again.failed), (1, 0));
    }
}
