//! Container images of the programs that run in a cluster, as archives that container runtimes import. No engine is needed.
//!
//! The programs are linked statically: nothing but them and a few empty directories is inside. Tests take them as they are
//! built anyhow, with the libraries that they load.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use cluster::{Entry, Image};

use crate::build;
use crate::shell;

/// What is made, and where it goes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the archives go; `target/images` if nothing is said.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// The part of the images' names before `node-agent`, `controller` and `waypoint`.
    #[arg(long, default_value = REGISTRY)]
    registry: String,
    /// The images' tag.
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
    tag: String,
    /// With all optimisations, for use.
    #[arg(long)]
    release: bool,
    /// Of the programs as `cargo xtask build` has built them, with the libraries that they load: quick, for a cluster of this
    /// machine. With the application of tests.
    #[arg(long, conflicts_with = "release")]
    as_built: bool,
}

/// Which programs are in an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Made {
    /// Those of `cargo xtask images`, without `--release`.
    Static,
    /// Those of the last `cargo xtask build`, and the libraries that they load.
    AsBuilt,
    /// With all optimisations, and the libraries that they load.
    Release,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.as_built {
        let programs = build::programs(false)?;
        write(args, &programs, Made::AsBuilt)?;
        return application_in(&folder(args)?).map(drop);
    }
    let programs = build(args.release)?;
    write(args, &programs, Made::Static).map(drop)
}

/// Makes the images of the chart's defaults; says where they are.
///
/// # Errors
/// A program cannot be built, or an archive not written.
pub(crate) fn make(made: Made) -> Result<Vec<PathBuf>> {
    let args = Args {
        out: None,
        registry: REGISTRY.to_owned(),
        tag: env!("CARGO_PKG_VERSION").to_owned(),
        release: false,
        as_built: false,
    };
    let programs = match made {
        Made::Static => build(false)?,
        Made::AsBuilt => build::programs(false)?,
        Made::Release => {
            build::for_figures()?;
            build::programs(true)?
        }
    };
    write(&args, &programs, made)
}

/// Makes images of programs that lie in a directory, with the libraries that they load and with a tag of their own.
///
/// # Errors
/// A program is not there, or an archive cannot be written.
pub(crate) fn make_of(programs: &Path, tag: &str, out: &Path) -> Result<Vec<PathBuf>> {
    let args = Args {
        out: Some(out.to_owned()),
        registry: REGISTRY.to_owned(),
        tag: tag.to_owned(),
        release: false,
        as_built: false,
    };
    write(&args, programs, Made::AsBuilt)
}

fn write(args: &Args, programs: &Path, made: Made) -> Result<Vec<PathBuf>> {
    let out = folder(args)?;
    let mut archives = Vec::new();
    for (name, mut image) in [
        ("node-agent", node_agent(programs)),
        ("controller", controller(programs)),
        ("waypoint", waypoint(programs)),
    ] {
        image.name = format!("{}/{name}:{}", args.registry, args.tag);
        if made != Made::Static {
            add_libraries(&mut image)?;
        }
        let archive = out.join(format!("{name}.tar"));
        image.write(&archive)?;
        let size = fs::metadata(&archive)?.len() >> 20;
        println!("{} {size} MiB {}", image.name, archive.display());
        archives.push(archive);
    }
    Ok(archives)
}

/// Where the archives go.
fn folder(args: &Args) -> Result<PathBuf> {
    let out = match &args.out {
        Some(out) => out.clone(),
        None => shell::root()?.join(IMAGES),
    };
    fs::create_dir_all(&out).with_context(|| format!("making {}", out.display()))?;
    Ok(out)
}

/// Builds the programs, and says where they lie.
fn build(release: bool) -> Result<PathBuf> {
    let target = match env::consts::ARCH {
        "x86_64" => "x86_64-unknown-linux-gnu",
        "aarch64" => "aarch64-unknown-linux-gnu",
        other => bail!("images for {other} have not been tried"),
    };
    let mut command = shell::cargo(&["build", "--target", target])?;
    for package in PACKAGES {
        command.args(["--package", package]);
    }
    if release {
        command.arg("--release");
    }
    // Only what is made for the target: what runs while building, such as macros, cannot be static.
    let flags = format!("CARGO_TARGET_{}_RUSTFLAGS", target.to_uppercase());
    let flags = flags.replace('-', "_");
    shell::run(command.env(flags, "-C target-feature=+crt-static"))?;
    let profiles = build::programs(release)?;
    let profile = profiles.file_name().context("a profile has a name")?;
    let cargo = profiles.parent().context("and lies in a directory")?;
    Ok(cargo.join(target).join(profile))
}

/// Makes the image of the application with many roles, in which tests stand up what others have published; where it is.
///
/// # Errors
/// As [`make`].
pub(crate) fn application() -> Result<PathBuf> {
    application_in(&shell::root()?.join(IMAGES))
}

fn application_in(out: &Path) -> Result<PathBuf> {
    let programs = build::programs(false)?;
    let mut image = Image {
        name: "keelson.io/test/application:test".to_owned(),
        entrypoint: vec!["/keelson-lab-app".to_owned()],
        entries: vec![
            program(&programs, "keelson-lab-app"),
            directory("/tmp", 0o777),
        ],
        ..Image::default()
    };
    add_libraries(&mut image)?;
    fs::create_dir_all(out).with_context(|| format!("making {}", out.display()))?;
    let archive = out.join("application.tar");
    image.write(&archive)?;
    Ok(archive)
}

/// Adds what the programs of an image load when they start, where they look for it.
fn add_libraries(image: &mut Image) -> Result<()> {
    let mut libraries = BTreeSet::new();
    for entry in &image.entries {
        if let Entry::File { source, .. } = entry {
            let loaded = shell::read(Command::new("ldd").arg(source))?;
            libraries.extend(loaded.lines().filter_map(library).map(str::to_owned));
        }
    }
    image.entries.extend(libraries.into_iter().map(|path| {
        let source = PathBuf::from(&path);
        Entry::File { path, source }
    }));
    Ok(())
}

/// The file in a line of `ldd`: `libc.so.6 => /lib/libc.so.6 (0x1)`, or `/lib64/ld-linux-x86-64.so.2 (0x1)`. The kernel's own
/// library has none.
fn library(line: &str) -> Option<&str> {
    line.split_whitespace().find(|word| word.starts_with('/'))
}

/// Root, as whoever loads programs into the kernel. The plugin is in the image since the agent installs it.
fn node_agent(programs: &Path) -> Image {
    Image {
        entrypoint: vec!["/keelson-node-agent".to_owned()],
        entries: vec![
            program(programs, "keelson-node-agent"),
            program(programs, "keelson-cni"),
            // Runtimes say /var/run where they mean /run.
            Entry::Link {
                path: "/var/run".to_owned(),
                target: "../run".to_owned(),
            },
            directory("/run", 0o755),
            directory("/etc", 0o755),
        ],
        ..Image::default()
    }
}

fn controller(programs: &Path) -> Image {
    Image {
        entrypoint: vec!["/keelson-controller".to_owned()],
        user: "65532:65532".to_owned(),
        entries: vec![
            program(programs, "keelson-controller"),
            directory("/etc", 0o755),
        ],
        ..Image::default()
    }
}

/// Nobody's rights, and a directory for what it knew last.
fn waypoint(programs: &Path) -> Image {
    Image {
        entrypoint: vec!["/keelson-waypoint".to_owned()],
        user: "65532:65532".to_owned(),
        entries: vec![
            program(programs, "keelson-waypoint"),
            directory("/etc", 0o755),
        ],
        ..Image::default()
    }
}

fn program(programs: &Path, name: &str) -> Entry {
    Entry::File {
        path: format!("/{name}"),
        source: programs.join(name),
    }
}

fn directory(path: &str, mode: u32) -> Entry {
    Entry::Directory {
        path: path.to_owned(),
        mode,
    }
}

/// Where archives go if nothing is said.
const IMAGES: &str = "target/images";

/// Nobody has to be asked for images that are on the node already.
const REGISTRY: &str = "keelson.io";
const PACKAGES: [&str; 4] = ["node-agent", "controller", "waypoint", "cni"];
/// What is in the images.
pub(crate) const PROGRAMS: [&str; 4] = [
    "keelson-node-agent",
    "keelson-controller",
    "keelson-waypoint",
    "keelson-cni",
];
