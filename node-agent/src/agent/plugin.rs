//! Keeps the CNI plugin installed while this agent is in charge, by running `keelson-cni install --watch` beside it.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread::JoinHandle,
    time::Duration,
};

use crate::agent::config::RunArgs;

/// Where the plugin is, and where it goes.
#[derive(Clone, Debug)]
pub struct Plugin {
    program: PathBuf,
    bin_dir: PathBuf,
    conf_dir: PathBuf,
    socket: PathBuf,
    excluded: Vec<String>,
    known: PathBuf,
}

impl Plugin {
    /// As the command line says; nothing if somebody else installs it.
    #[must_use]
    pub fn of(args: &RunArgs) -> Option<Self> {
        Some(Self {
            program: args.cni_plugin.clone()?,
            bin_dir: args.cni_bin_dir.clone(),
            conf_dir: args.cni_conf_dir.clone(),
            socket: args.cni_socket.clone(),
            excluded: args.cni_exclude_namespaces.clone(),
            known: args.state_dir.join("mesh.json"),
        })
    }

    /// Installs it and follows the cluster's own network until told to stop.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn keep(self) -> std::io::Result<Kept> {
        let (stop, stopped) = mpsc::channel();
        let plugin = self.clone();
        let thread = std::thread::Builder::new()
            .name("cni".to_owned())
            .spawn(move || {
                while plugin.run(&stopped) {
                    tracing::error!(
                        "the CNI plugin is not kept installed any more; starting again"
                    );
                }
            })?;
        Ok(Kept {
            plugin: self,
            stop,
            thread: Some(thread),
        })
    }

    /// Runs until told to stop; true if it ended by itself.
    fn run(&self, stopped: &mpsc::Receiver<()>) -> bool {
        let mut child = match self.install() {
            Ok(child) => child,
            Err(error) => {
                tracing::error!(%error, program = %self.program.display(), "cannot start the CNI plugin's installation");
                return wait(stopped, AGAIN);
            }
        };
        while wait(stopped, LOOK_EVERY) {
            match child.try_wait() {
                Ok(None) => {}
                Ok(Some(_)) | Err(_) => return wait(stopped, AGAIN),
            }
        }
        end(&mut child);
        false
    }

    fn install(&self) -> std::io::Result<Child> {
        Command::new(&self.program)
            .args(["install", "--watch", "--bin-dir"])
            .arg(&self.bin_dir)
            .arg("--conf-dir")
            .arg(&self.conf_dir)
            .arg("--socket")
            .arg(&self.socket)
            .arg("--exclude-namespaces")
            .arg(self.excluded.join(","))
            .arg("--known")
            .arg(&self.known)
            .env_remove("CNI_COMMAND")
            .stdin(Stdio::null())
            .spawn()
    }

    fn uninstall(&self) -> std::io::Result<()> {
        let status = Command::new(&self.program)
            .args(["uninstall", "--bin-dir"])
            .arg(&self.bin_dir)
            .arg("--conf-dir")
            .arg(&self.conf_dir)
            .env_remove("CNI_COMMAND")
            .stdin(Stdio::null())
            .status()?;
        if status.success() {
            return Ok(());
        }
        Err(std::io::Error::other(format!("it ended with {status}")))
    }
}

/// A plugin that is kept installed. Dropping this leaves it as it is: for the next agent.
#[derive(Debug)]
pub struct Kept {
    plugin: Plugin,
    stop: Sender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Kept {
    /// Takes it away again: pods that start from now on are nobody's.
    ///
    /// # Errors
    /// When the list or the program stays.
    pub fn uninstall(mut self) -> std::io::Result<()> {
        self.end();
        self.plugin.uninstall()
    }

    fn end(&mut self) {
        // A thread that has ended hears nothing and needs to hear nothing.
        let _ended = self.stop.send(()).is_err();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that keeps the CNI plugin installed had panicked");
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.end();
    }
}

/// Waits; false if it is over.
fn wait(stopped: &mpsc::Receiver<()>, long: Duration) -> bool {
    stopped.recv_timeout(long) == Err(RecvTimeoutError::Timeout)
}

fn end(child: &mut Child) {
    let ended = child.kill().and_then(|()| child.wait());
    if let Err(error) = ended {
        tracing::warn!(%error, "cannot end the CNI plugin's installation");
    }
}

const LOOK_EVERY: Duration = Duration::from_millis(200);
const AGAIN: Duration = Duration::from_secs(1);
