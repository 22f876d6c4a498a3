//! The images that every node has: there is no registry to fetch them from.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
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
        write(&images, name, &image()?)?;
    }
    Ok(())
}

/// Makes those that the Gateway API's tests name in their manifests, and says where they are. No other cluster has them.
///
/// # Errors
/// A program for them is missing, or the manifests name an image of something else.
pub(crate) fn make_of_conformance() -> Result<Vec<PathBuf>> {
    let images = base()?.join("conformance");
    fs::create_dir_all(&images).with_context(|| format!("making {}", images.display()))?;
    let suite = programs::module_directory(
        &programs::CONFORMANCE,
        "sigs.k8s.io/gateway-api/conformance",
    )?;
    let mut named = BTreeSet::new();
    images_in(&suite, &mut named)?;
    let mut archives = Vec::new();
    for name in named {
        let last = name.rsplit('/').next().unwrap_or_default();
        let image = match last.split(':').next().unwrap_or_default() {
            "echo-basic" => echo_basic()?,
            "echo-advanced" => echo_advanced()?,
            // For a test of UDP. Any version answers.
            "coredns" => coredns()?,
            _ => bail!("nothing is known of {name}, which the Gateway API's tests run"),
        };
        let image = Image {
            name: name.clone(),
            ..image
        };
        archives.push(write(&images, &last.replace(':', "-"), &image)?);
    }
    Ok(archives)
}

/// Makes the one of Istio's control plane, in `target/cluster/istiod`, with Istio's charts beside it. The test that installs it
/// gives it to the nodes.
///
/// # Errors
/// The program is missing, or Istio's charts are.
pub(crate) fn make_of_istiod() -> Result<()> {
    let directory = base()?.join("istiod");
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    let istio = programs::module_directory(&programs::ISTIOD, "istio.io/istio")?;
    let (charts, link) = (istio.join("manifests/charts"), directory.join("charts"));
    if fs::read_link(&link).ok().as_ref() != Some(&charts) {
        if link.is_symlink() {
            fs::remove_file(&link)?;
        }
        symlink(&charts, &link).with_context(|| format!("making {}", link.display()))?;
    }
    let program = "/usr/local/bin/pilot-discovery";
    let image = Image {
        name: "keelson.io/istio/pilot:test".to_owned(),
        entrypoint: vec![program.to_owned()],
        user: "1337:1337".to_owned(),
        entries: vec![
            file(program, &base()?.join("bin/pilot-discovery")),
            Entry::Directory {
                path: "/tmp".to_owned(),
                mode: 0o1777,
            },
        ],
        ..Image::default()
    };
    write(&directory, "istiod", &image).map(drop)
}

/// The images that the manifests below a directory name.
fn images_in(directory: &Path, into: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            images_in(&path, into)?;
        } else if path.extension().is_some_and(|end| end == "yaml") {
            let text = fs::read_to_string(&path)?;
            let names = text.lines().filter_map(|line| {
                let (_, name) = line.split_once("image:")?;
                Some(name.trim().trim_matches('"').to_owned())
            });
            into.extend(names);
        }
    }
    Ok(())
}

/// Writes an image unless that has been done; where its archive is.
fn write(images: &Path, name: &str, image: &Image) -> Result<PathBuf> {
    let out = images.join(format!("{name}.tar"));
    let stamp = images.join(format!("{name}.made"));
    let made_of = describe(image)?;
    if !out.exists() || fs::read_to_string(&stamp).ok().as_ref() != Some(&made_of) {
        image.write(&out)?;
        fs::write(&stamp, made_of)?;
    }
    Ok(out)
}

fn echo_basic() -> Result<Image> {
    Ok(Image {
        entrypoint: vec!["/echo-basic".to_owned()],
        entries: vec![file("/echo-basic", &base()?.join("bin/echo-basic"))],
        ..Image::default()
    })
}

/// With the certificate of Istio's own tests, as its image has it.
fn echo_advanced() -> Result<Image> {
    let bin = base()?.join("bin");
    let istio = programs::module_directory(&programs::ECHO, "istio.io/istio")?;
    let certificates = istio.join("tests/testdata/certs/dns");
    Ok(Image {
        entrypoint: vec!["/usr/local/bin/server".to_owned()],
        entries: vec![
            file("/usr/local/bin/server", &bin.join("echo-server")),
            file("/usr/local/bin/client", &bin.join("echo-client")),
            file("/cert.crt", &certificates.join("cert-chain.pem")),
            file("/cert.key", &certificates.join("key.pem")),
        ],
        ..Image::default()
    })
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
