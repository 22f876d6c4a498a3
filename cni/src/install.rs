//! Puts the plugin where the runtime finds it, and keeps it chained behind the cluster's own network.
//!
//! A runtime takes the first configuration of its folder, by name. Ours holds the plugins of the first one that is not ours
//! and then `keelson-cni`, and sorts before it. So the cluster's own file is never touched: what rewrites it, or a reboot,
//! undoes nothing.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

/// Where the runtime looks.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Place {
    /// The runtime's folder of plugins.
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    bin_dir: PathBuf,
    /// The runtime's folder of network configurations.
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    conf_dir: PathBuf,
}

/// How to install.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    place: Place,
    /// Where the agent of the node listens.
    #[arg(long, value_name = "PATH", default_value = "/run/keelson/cni.sock")]
    socket: PathBuf,
    /// Namespaces whose pods start without the agent: what a node needs before the agent can run.
    #[arg(
        long,
        value_name = "NAMESPACE",
        value_delimiter = ',',
        default_value = "kube-system,keelson-system"
    )]
    exclude_namespaces: Vec<String>,
    /// Where the agent keeps which pods and namespaces belong to the mesh.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/var/lib/keelson/mesh.json"
    )]
    known: PathBuf,
    /// Go on, and follow when the cluster's configuration changes.
    #[arg(long)]
    watch: bool,
}

/// Installs once, or for as long as the program runs.
pub(crate) fn install(args: &Args) -> Result<()> {
    copy_program(&args.place.bin_dir)?;
    let mut last = None;
    loop {
        let now = match keep(args) {
            Ok(done) => done,
            Err(error) if args.watch => format!("{error:#}; trying again"),
            Err(error) => return Err(error),
        };
        if last.as_ref() != Some(&now) {
            say(&now);
            last = Some(now);
        }
        if !args.watch {
            return Ok(());
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Puts back what somebody has taken away: an upgrade of the cluster's own network may empty the folder of plugins. The list
/// names the program only while it is there: a runtime that does not find it neither starts nor ends any pod, whose ever it is.
fn keep(args: &Args) -> Result<String> {
    let place = &args.place;
    if !is_program(&place.bin_dir.join(NAME))
        && let Err(error) = copy_program(&place.bin_dir)
    {
        remove(&place.conf_dir.join(OURS))?;
        return Err(error.context("pods start without the plugin, and are captured once they run"));
    }
    chain(args)
}

/// Whether the runtime can start it. A fresh one of another version of ours is as good: it is the next agent's.
fn is_program(path: &Path) -> bool {
    const EXECUTABLE: u32 = 0o111;
    fs::metadata(path).is_ok_and(|found| {
        found.is_file() && found.len() > 0 && found.permissions().mode() & EXECUTABLE != 0
    })
}

/// Takes away what [`install`] made. What is not there is no error.
pub(crate) fn uninstall(place: &Place) -> Result<()> {
    // The list first: while it is there the runtime needs the program.
    for path in [place.conf_dir.join(OURS), place.bin_dir.join(NAME)] {
        remove(&path)?;
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Ok(()) => say(&format!("removed {}", path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            return Err(error).with_context(|| format!("removing {}", path.display()));
        }
    }
    Ok(())
}

/// Replaced in one step: the runtime may be about to start it.
fn copy_program(bin_dir: &Path) -> Result<()> {
    let own = std::env::current_exe().context("finding this program")?;
    let program = fs::read(&own).with_context(|| format!("reading {}", own.display()))?;
    fs::create_dir_all(bin_dir).with_context(|| format!("making {}", bin_dir.display()))?;
    replace(&bin_dir.join(NAME), &program, 0o755)
}

/// Writes our list if it is not what it should be; says what is in effect.
fn chain(args: &Args) -> Result<String> {
    let conf_dir = &args.place.conf_dir;
    let (file, mut list) = cluster_list(conf_dir)?;
    let plugins = list.get_mut("plugins").and_then(Value::as_array_mut);
    let Some(plugins) = plugins else {
        bail!("{} has no plugins", file.display());
    };
    plugins.retain(|plugin| plugin.get("type").and_then(Value::as_str) != Some(NAME));
    plugins.push(json!({
        "type": NAME,
        "socket": args.socket,
        "excludeNamespaces": args.exclude_namespaces,
        "known": args.known,
    }));
    let text = serde_json::to_vec_pretty(&list)?;
    let ours = conf_dir.join(OURS);
    if fs::read(&ours).ok().as_ref() != Some(&text) {
        replace(&ours, &text, 0o600)?;
    }
    Ok(format!(
        "{} is in effect: the plugins of {} and then {NAME}",
        ours.display(),
        file.display()
    ))
}

/// The configuration that would be in effect without us, as a list.
fn cluster_list(conf_dir: &Path) -> Result<(PathBuf, Value)> {
    let read = fs::read_dir(conf_dir).with_context(|| format!("reading {}", conf_dir.display()))?;
    let mut files: Vec<PathBuf> = read
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let extension = path.extension().and_then(|extension| extension.to_str());
            let known = matches!(extension, Some("conf" | "conflist" | "json"));
            known && path.file_name().is_none_or(|name| name != OURS)
        })
        .collect();
    files.sort();
    for file in files {
        // One that is being written, or is none, is passed over as the runtime does.
        let Ok(text) = fs::read(&file) else { continue };
        let Ok(config) = serde_json::from_slice::<Value>(&text) else {
            continue;
        };
        if config.get("plugins").is_some_and(Value::is_array) {
            return Ok((file, config));
        }
        if config.get("type").is_some_and(Value::is_string) {
            let list = json!({
                "cniVersion": config.get("cniVersion"),
                "name": config.get("name"),
                "plugins": [config],
            });
            return Ok((file, list));
        }
    }
    bail!(
        "{} has no network configuration yet: the cluster's own network is not installed",
        conf_dir.display()
    )
}

fn replace(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // Hidden, and with an extension that no runtime reads.
    let fresh = path.with_file_name(format!(".{name}.new"));
    let write = || -> io::Result<()> {
        let mut file = fs::File::create(&fresh)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(content)?;
        file.sync_all()?;
        drop(file);
        fs::rename(&fresh, path)
    };
    write().with_context(|| format!("writing {}", path.display()))
}

#[expect(clippy::print_stdout, reason = "the DaemonSet's log, or a person")]
fn say(text: &str) {
    println!("{text}");
}

const NAME: &str = "keelson-cni";
/// Sorts before what networks call theirs: they begin with two digits, or a letter.
const OURS: &str = "00-keelson.conflist";
const LOOK_EVERY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn args(root: &Path) -> Args {
        Args {
            place: Place {
                bin_dir: root.join("bin"),
                conf_dir: root.join("net.d"),
            },
            socket: "/run/keelson/cni.sock".into(),
            exclude_namespaces: vec!["kube-system".to_owned()],
            known: "/var/lib/keelson/mesh.json".into(),
            watch: false,
        }
    }

    fn types(root: &Path) -> Vec<String> {
        let text = fs::read(root.join("net.d").join(OURS)).expect("written");
        let list: Value = serde_json::from_slice(&text).expect("JSON");
        assert_eq!(list["name"], "cluster", "{list}");
        let plugins = list["plugins"].as_array().expect("a list").iter();
        plugins
            .map(|plugin| plugin["type"].as_str().expect("a type").to_owned())
            .collect()
    }

    #[test]
    fn the_clusters_plugins_come_first_and_its_file_stays() {
        let dir = tempfile::tempdir().expect("a folder");
        let root = dir.path();
        let theirs = root.join("net.d/10-flannel.conflist");
        fs::create_dir_all(root.join("net.d")).expect("makes it");
        assert!(install(&args(root)).is_err(), "there is no network yet");
        let text = r#"{"cniVersion":"1.0.0","name":"cluster","plugins":[{"type":"bridge"},{"type":"portmap"}]}"#;
        fs::write(&theirs, text).expect("writes");
        // A later one, and one that cannot be read, change nothing.
        fs::write(
            root.join("net.d/20-other.conf"),
            r#"{"type":"ptp","name":"other"}"#,
        )
        .expect("writes");
        fs::write(root.join("net.d/05-half.conflist"), "{").expect("writes");
        for _ in 0..2 {
            install(&args(root)).expect("installs");
            assert_eq!(types(root), ["bridge", "portmap", NAME]);
        }
        assert_eq!(fs::read_to_string(&theirs).expect("there"), text);

        // The cluster's network is replaced by one of a single plugin.
        fs::write(
            &theirs,
            r#"{"cniVersion":"0.4.0","name":"cluster","type":"calico"}"#,
        )
        .expect("writes");
        install(&args(root)).expect("installs");
        assert_eq!(types(root), ["calico", NAME]);

        let installed = root.join("bin").join(NAME);
        let mode = fs::metadata(&installed)
            .expect("copied")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o755);
        for _ in 0..2 {
            uninstall(&args(root).place).expect("removes");
            assert!(!installed.exists() && !root.join("net.d").join(OURS).exists());
        }
        assert!(theirs.exists());
    }

    fn with_a_network() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(dir.path().join("net.d")).expect("makes it");
        let text = r#"{"cniVersion":"1.0.0","name":"cluster","plugins":[{"type":"bridge"}]}"#;
        fs::write(dir.path().join("net.d/10-x.conflist"), text).expect("writes");
        dir
    }

    #[test]
    fn a_program_that_somebody_takes_away_is_put_back() {
        let dir = with_a_network();
        let root = dir.path();
        install(&args(root)).expect("installs");
        let installed = root.join("bin").join(NAME);
        let whole = fs::metadata(&installed).expect("there").len();
        type Take = fn(&Path) -> io::Result<()>;
        let taken: [(&str, Take); 4] = [
            ("removed", |path| fs::remove_file(path)),
            ("with its folder", |path| {
                fs::remove_dir_all(path.parent().expect("has one"))
            }),
            ("emptied", |path| fs::write(path, "")),
            ("not to be run", |path| {
                fs::set_permissions(path, fs::Permissions::from_mode(0o644))
            }),
        ];
        for (what, take) in taken {
            take(&installed).expect(what);
            assert!(!is_program(&installed), "{what}");
            keep(&args(root)).expect("puts it back");
            assert!(is_program(&installed), "{what}");
            assert_eq!(fs::metadata(&installed).expect("there").len(), whole);
        }
        // The next agent's, of another version.
        replace(&installed, b"#!/bin/true", 0o755).expect("writes");
        keep(&args(root)).expect("leaves it");
        assert_eq!(fs::read(&installed).expect("there"), b"#!/bin/true");
    }

    #[test]
    fn the_list_goes_while_the_program_cannot_be_put_back() {
        let dir = with_a_network();
        let root = dir.path();
        install(&args(root)).expect("installs");
        let bin = root.join("bin");
        fs::remove_dir_all(&bin).expect("removes");
        fs::write(&bin, "no folder").expect("writes");
        let error = format!("{:#}", keep(&args(root)).expect_err("it cannot"));
        assert!(
            error.starts_with("pods start without the plugin"),
            "{error}"
        );
        assert!(!root.join("net.d").join(OURS).exists());
        fs::remove_file(&bin).expect("removes");
        keep(&args(root)).expect("it can again");
        assert_eq!(types(root), ["bridge", NAME]);
    }

    #[test]
    fn a_list_that_holds_the_plugin_already_holds_it_once() {
        let dir = tempfile::tempdir().expect("a folder");
        let root = dir.path();
        fs::create_dir_all(root.join("net.d")).expect("makes it");
        let text = json!({"cniVersion": "1.0.0", "name": "cluster", "plugins": [{"type": NAME}, {"type": "bridge"}]});
        fs::write(root.join("net.d/10-x.conflist"), text.to_string()).expect("writes");
        install(&args(root)).expect("installs");
        assert_eq!(types(root), ["bridge", NAME]);
    }
}
