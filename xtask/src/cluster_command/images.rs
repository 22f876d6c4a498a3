//! The images that every node has: there is no registry to fetch them from.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use cluster::{Entry, Image};

use crate::cluster_command::{base, debian, programs};
use crate::shell;

/// Makes those that are missing.
///
/// # Errors
/// A program for them is missing or cannot be built.
pub(crate) fn make() -> Result<()> {
    let images = base()?.join("images");
    fs::create_dir_all(&images).with_context(|| format!("making {}", images.display()))?;
    for (name, image) in [
        ("pause", pause as fn() -> Result<Image>),
        ("busybox", busybox),
        ("coredns", coredns),
    ] {
        let image = image()?;
        let out = images.join(format!("{name}.tar"));
        let stamp = images.join(format!("{name}.made"));
        let made_of = describe(&image)?;
        if out.exists() && fs::read_to_string(&stamp).is_ok_and(|text| text == made_of) {
            continue;
        }
        image.write(&out)?;
        fs::write(&stamp, made_of)?;
    }
    Ok(())
}

/// What an image is made of, to be compared with what it was made of.
fn describe(image: &Image) -> Result<String> {
    let mut text = format!("{image:?}");
    for entry in &image.entries {
        if let Entry::File { source, .. } = entry {
            let metadata =
                fs::metadata(source).with_context(|| format!("looking at {}", source.display()))?;
            text.push_str(&format!("\n{} {:?}", metadata.len(), metadata.modified()?));
        }
    }
    Ok(text)
}

/// The container that holds a pod's namespaces, compiled from Kubernetes' own source.
fn pause() -> Result<Image> {
    let program = base()?.join("bin/pause");
    if !program.exists() {
        let [kubernetes, _] = &programs::KUBERNETES;
        let source = programs::module_directory(kubernetes, "k8s.io/kubernetes")?
            .join("build/pause/linux/pause.c");
        let mut command = Command::new("cc");
        command.args(["-static", "-Os", "-o"]).arg(&program);
        shell::read(command.arg(source))?;
    }
    Ok(Image {
        name: "registry.k8s.io/pause:3.10".to_owned(),
        entrypoint: vec!["/pause".to_owned()],
        user: "65535:65535".to_owned(),
        entries: vec![file("/pause", &program)],
        ..Image::default()
    })
}

/// What tests run in their pods. Not the static one, which cannot look up names without what it would load for that.
fn busybox() -> Result<Image> {
    let program = debian::unpacked("bin/busybox")?;
    let applets = shell::read(Command::new(&program).arg("--list"))?;
    let links = applets.lines().filter(|name| *name != "busybox");
    let mut entries = vec![file("/bin/busybox", &program)];
    entries.extend(links.map(|name| Entry::Link {
        path: format!("/bin/{name}"),
        target: "busybox".to_owned(),
    }));
    let libraries = format!("lib/{}-linux-gnu", env::consts::ARCH);
    for library in ["libc.so.6", "libresolv.so.2"] {
        let path = format!("{libraries}/{library}");
        entries.push(file(&format!("/{path}"), &debian::unpacked(&path)?));
    }
    let (loader, directory) = match env::consts::ARCH {
        "x86_64" => ("ld-linux-x86-64.so.2", "lib64"),
        "aarch64" => ("ld-linux-aarch64.so.1", "lib"),
        other => bail!("containers for {other} have not been tried"),
    };
    let source = debian::unpacked(&format!("{libraries}/{loader}"))?;
    entries.push(file(&format!("/{directory}/{loader}"), &source));
    for (path, mode) in [("/tmp", 0o1777), ("/etc", 0o755), ("/root", 0o700)] {
        entries.push(Entry::Directory {
            path: path.to_owned(),
            mode,
        });
    }
    Ok(Image {
        name: "docker.io/library/busybox:1.35".to_owned(),
        cmd: vec!["/bin/sh".to_owned()],
        entries,
        ..Image::default()
    })
}

fn coredns() -> Result<Image> {
    Ok(Image {
        name: "registry.k8s.io/coredns/coredns:v1.13.1".to_owned(),
        entrypoint: vec!["/coredns".to_owned()],
        entries: vec![file("/coredns", &base()?.join("bin/coredns"))],
        ..Image::default()
    })
}

fn file(path: &str, source: &Path) -> Entry {
    Entry::File {
        path: path.to_owned(),
        source: source.to_owned(),
    }
}
