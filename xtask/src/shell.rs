//! How commands are run and how their progress looks.

use std::env;
use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, bail};

/// The root of the checkout.
pub(crate) fn root() -> Result<PathBuf> {
    // Set by cargo when it runs this program; the second case is for running it by hand.
    let manifest = env::var_os("CARGO_MANIFEST_DIR")
        .unwrap_or_else(|| OsString::from(env!("CARGO_MANIFEST_DIR")));
    let manifest = PathBuf::from(manifest);
    let parent = manifest
        .parent()
        .context("xtask lies in the root of the checkout")?;
    Ok(parent.to_owned())
}

/// Where this program lies. Found out when it starts: cargo may put a newly built one in its place while it runs, and then
/// the system calls this one's path deleted.
///
/// # Errors
/// The system does not say.
pub(crate) fn this_program() -> Result<PathBuf> {
    static PATH: OnceLock<Option<PathBuf>> = OnceLock::new();
    let path = PATH.get_or_init(|| env::current_exe().ok());
    path.clone().context("finding this program")
}

/// A cargo command in the root of the checkout, with what the nested build of the kernel half
/// needs in its environment.
pub(crate) fn cargo(args: &[&str]) -> Result<Command> {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let prefix = llvm_prefix();
    let mut path = OsString::from(prefix.join("bin"));
    if let Some(rest) = env::var_os("PATH") {
        path.push(":");
        path.push(rest);
    }
    command
        .args(args)
        .current_dir(root()?)
        .env("LLVM_PREFIX", &prefix)
        .env("PATH", path)
        .stdin(Stdio::null());
    Ok(command)
}

/// `LLVM_PREFIX`, or where Debian's packages put LLVM.
pub(crate) fn llvm_prefix() -> PathBuf {
    env::var_os("LLVM_PREFIX").map_or_else(|| PathBuf::from("/usr/lib/llvm-22"), PathBuf::from)
}

/// The target that is compiled for if none is named.
pub(crate) fn host() -> Result<String> {
    let version = read(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host
        .context("rustc does not say what it runs on")?
        .to_owned())
}

/// Shows a command, runs it with its output visible, and fails if it does.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let text = text_of(command);
    println!("{} {text}", dim("$"));
    let start = Instant::now();
    let status = command
        .status()
        .with_context(|| format!("starting `{text}`"))?;
    if !status.success() {
        bail!("`{text}` failed: {status}");
    }
    let took = start.elapsed().as_secs();
    if took >= 10 {
        println!("{}", dim(&format!("  ({took} s)")));
    }
    Ok(())
}

/// The standard output of a command that works, without the last line's end.
pub(crate) fn read(command: &mut Command) -> Result<String> {
    let text = text_of(command);
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .with_context(|| format!("starting `{text}`"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(anyhow!("{}", said.trim())).with_context(|| format!("`{text}` failed"));
    }
    Ok(String::from_utf8_lossy(&output.stdout)
        .trim_end()
        .to_owned())
}

/// Where a program is found on `PATH`; the places of administrators' programs count too.
pub(crate) fn which(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let further = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    env::split_paths(&path)
        .chain(further)
        .map(|directory| directory.join(program))
        .find(|path| path.is_file())
}

/// Whether this process may do what root may do.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A line that begins a part of the work.
pub(crate) fn heading(text: &str) {
    println!("\n{}", bold(text));
}

/// A fact that is as it should be.
pub(crate) fn good(text: &str) {
    println!("  {} {text}", green("ok"));
}

/// A fact that is not as it should be.
pub(crate) fn bad(text: &str) {
    println!("  {} {text}", red("NO"));
}

/// Further detail of the line before.
pub(crate) fn detail(text: &str) {
    for line in text.lines() {
        println!("     {}", dim(line));
    }
}

pub(crate) fn bold(text: &str) -> String {
    painted("1", text)
}

pub(crate) fn dim(text: &str) -> String {
    painted("2", text)
}

pub(crate) fn green(text: &str) -> String {
    painted("32", text)
}

pub(crate) fn red(text: &str) -> String {
    painted("31", text)
}

/// Colour is for people: none in a file, in a pipe, or where <https://no-color.org> is followed.
fn painted(code: &str, text: &str) -> String {
    let wanted = std::io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none();
    if wanted {
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    } else {
        text.to_owned()
    }
}

fn text_of(command: &Command) -> String {
    let program = PathBuf::from(command.get_program());
    let name = program.file_name().unwrap_or(command.get_program());
    let mut text = name.to_string_lossy().into_owned();
    for arg in command.get_args() {
        text.push(' ');
        text.push_str(&arg.to_string_lossy());
    }
    text
}
