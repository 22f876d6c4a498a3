//! A container image from files, as an OCI image layout in a tar archive: no engine is needed to make one.
//!
//! Whoever makes the same image of the same files gets the same bytes: no clock and no owner is written down.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use oci_spec::image::{
    Arch, ConfigBuilder, Descriptor, DescriptorBuilder, ImageConfigurationBuilder,
    ImageIndexBuilder, ImageManifestBuilder, MediaType, OciLayoutBuilder, Os, PlatformBuilder,
    RootFsBuilder, Sha256Digest,
};
use sha2::{Digest as _, Sha256};

/// An image of one layer.
#[derive(Debug, Clone, Default)]
pub struct Image {
    /// Its full name with a tag, such as `registry.k8s.io/pause:3.10`.
    pub name: String,
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// Further arguments, which a pod may replace.
    pub cmd: Vec<String>,
    /// `USER[:GROUP]` as numbers; root if it is empty.
    pub user: String,
    /// What is in it, besides the directories that this needs.
    pub entries: Vec<Entry>,
}

/// Something in an image. Paths are absolute.
#[derive(Debug, Clone)]
pub enum Entry {
    /// A copy of a file, executable by all if its owner may execute it.
    File {
        /// Where it is in the image.
        path: String,
        /// Where it is now.
        source: PathBuf,
    },
    /// A directory.
    Directory {
        /// Where it is.
        path: String,
        /// Its permissions.
        mode: u32,
    },
    /// A symbolic link.
    Link {
        /// Where it is.
        path: String,
        /// Where it leads.
        target: String,
    },
}

impl Image {
    /// Writes the archive: `ctr images import`, `docker load`, `podman load` and `skopeo` read it.
    ///
    /// # Errors
    /// A file cannot be read, or the archive not written.
    pub fn write(&self, out: &Path) -> Result<()> {
        // An archive that is there is whole.
        let part = out.with_extension("part");
        let file = File::create(&part).with_context(|| format!("writing {}", part.display()))?;
        let mut file = BufWriter::new(file);
        self.write_to(&mut file)
            .with_context(|| format!("making the image {}", self.name))?;
        file.flush()?;
        fs::rename(&part, out).with_context(|| format!("writing {}", out.display()))
    }

    fn write_to(&self, out: &mut impl Write) -> Result<()> {
        let layer = self.layer()?;
        let diff_id = format!("sha256:{}", hex(&layer));
        let config = serde_json::to_vec(&self.configuration(diff_id)?)?;
        let manifest = ImageManifestBuilder::default()
            .schema_version(SCHEMA)
            .media_type(MediaType::ImageManifest)
            .config(describe(MediaType::ImageConfig, &config)?)
            .layers(vec![describe(MediaType::ImageLayer, &layer)?])
            .build()?;
        let manifest = serde_json::to_vec(&manifest)?;
        let mut described = describe(MediaType::ImageManifest, &manifest)?;
        let platform = PlatformBuilder::default()
            .architecture(Arch::default())
            .os(Os::Linux)
            .build()?;
        described.set_platform(Some(platform));
        let tag = self.name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
        described.set_annotations(Some(HashMap::from([
            ("io.containerd.image.name".to_owned(), self.name.clone()),
            (
                "org.opencontainers.image.ref.name".to_owned(),
                tag.to_owned(),
            ),
        ])));
        let index = ImageIndexBuilder::default()
            .schema_version(SCHEMA)
            .media_type(MediaType::ImageIndex)
            .manifests(vec![described])
            .build()?;
        // A map of `oci_spec` has no order; a value's has one.
        let index = serde_json::to_value(&index)?;
        let layout = OciLayoutBuilder::default()
            .image_layout_version("1.0.0")
            .build()?;

        let mut archive = tar::Builder::new(out);
        append(
            &mut archive,
            "oci-layout",
            &serde_json::to_vec(&layout)?,
            0o644,
        )?;
        append(
            &mut archive,
            "index.json",
            &serde_json::to_vec(&index)?,
            0o644,
        )?;
        for blob in [&manifest, &config, &layer] {
            let path = format!("blobs/sha256/{}", hex(blob));
            append(&mut archive, &path, blob, 0o644)?;
        }
        archive.finish()?;
        Ok(())
    }

    fn configuration(&self, diff_id: String) -> Result<oci_spec::image::ImageConfiguration> {
        let mut config = ConfigBuilder::default()
            .env(vec!["PATH=/usr/local/bin:/usr/bin:/bin".to_owned()])
            .user(self.user.clone())
            .working_dir("/");
        if !self.entrypoint.is_empty() {
            config = config.entrypoint(self.entrypoint.clone());
        }
        if !self.cmd.is_empty() {
            config = config.cmd(self.cmd.clone());
        }
        let rootfs = RootFsBuilder::default()
            .typ("layers")
            .diff_ids(vec![diff_id])
            .build()?;
        Ok(ImageConfigurationBuilder::default()
            .created("1970-01-01T00:00:00Z")
            .architecture(Arch::default())
            .os(Os::Linux)
            .config(config.build()?)
            .rootfs(rootfs)
            .build()?)
    }

    /// The file system, as an archive.
    fn layer(&self) -> Result<Vec<u8>> {
        let mut archive = tar::Builder::new(Vec::new());
        let mut made = BTreeSet::new();
        for entry in &self.entries {
            match entry {
                Entry::File { path, source } => {
                    let path = below_root(path);
                    parents(&mut archive, path, &mut made)?;
                    let bytes = fs::read(source)
                        .with_context(|| format!("reading {}", source.display()))?;
                    let own = fs::metadata(source)?.permissions().mode();
                    let mode = if own & 0o100 == 0 { 0o644 } else { 0o755 };
                    append(&mut archive, path, &bytes, mode)?;
                }
                Entry::Directory { path, mode } => {
                    let path = below_root(path);
                    parents(&mut archive, path, &mut made)?;
                    directory(&mut archive, path, *mode, &mut made)?;
                }
                Entry::Link { path, target } => {
                    let path = below_root(path);
                    parents(&mut archive, path, &mut made)?;
                    let mut header = header(tar::EntryType::Symlink, 0o777, 0);
                    archive.append_link(&mut header, path, target)?;
                }
            }
        }
        Ok(archive.into_inner()?)
    }
}

/// Makes the directories above a path that have not been made.
fn parents(
    archive: &mut tar::Builder<Vec<u8>>,
    path: &str,
    made: &mut BTreeSet<String>,
) -> Result<()> {
    for (end, _) in path.match_indices('/') {
        let parent = path.get(..end).unwrap_or_default();
        directory(archive, parent, 0o755, made)?;
    }
    Ok(())
}

fn directory(
    archive: &mut tar::Builder<Vec<u8>>,
    path: &str,
    mode: u32,
    made: &mut BTreeSet<String>,
) -> Result<()> {
    if made.insert(path.to_owned()) {
        let mut header = header(tar::EntryType::Directory, mode, 0);
        archive.append_data(&mut header, path, std::io::empty())?;
    }
    Ok(())
}

fn append<W: Write>(
    archive: &mut tar::Builder<W>,
    path: &str,
    bytes: &[u8],
    mode: u32,
) -> Result<()> {
    let size = u64::try_from(bytes.len())?;
    let mut header = header(tar::EntryType::Regular, mode, size);
    Ok(archive.append_data(&mut header, path, bytes)?)
}

/// Owned by root, and of no time.
fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn describe(kind: MediaType, blob: &[u8]) -> Result<Descriptor> {
    let digest: Sha256Digest = hex(blob).parse()?;
    Ok(DescriptorBuilder::default()
        .media_type(kind)
        .digest(digest)
        .size(u64::try_from(blob.len())?)
        .build()?)
}

fn hex(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn below_root(path: &str) -> &str {
    path.trim_matches('/')
}

/// Of manifests and indexes, <https://github.com/opencontainers/image-spec/blob/v1.1.1/manifest.md>.
const SCHEMA: u32 = 2;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read as _;

    use super::*;

    fn contents(archive: &[u8]) -> Result<BTreeMap<String, Vec<u8>>> {
        let mut contents = BTreeMap::new();
        for entry in tar::Archive::new(archive).entries()? {
            let mut entry = entry?;
            let mut bytes = Vec::new();
            let path = entry.path()?.display().to_string();
            entry.read_to_end(&mut bytes)?;
            contents.insert(path, bytes);
        }
        Ok(contents)
    }

    #[test]
    fn every_digest_leads_to_what_it_is_the_digest_of_and_the_same_files_make_the_same_image()
    -> Result<()> {
        let place = tempfile::tempdir()?;
        let source = place.path().join("program");
        fs::write(&source, "a program")?;
        let image = Image {
            name: "example.org/a/b:1".to_owned(),
            entrypoint: vec!["/bin/program".to_owned()],
            user: "65532:65532".to_owned(),
            entries: vec![
                Entry::File {
                    path: "/bin/program".to_owned(),
                    source,
                },
                Entry::Link {
                    path: "/bin/other".to_owned(),
                    target: "program".to_owned(),
                },
                Entry::Directory {
                    path: "/tmp".to_owned(),
                    mode: 0o1777,
                },
            ],
            ..Image::default()
        };
        let (one, other) = (place.path().join("one.tar"), place.path().join("other.tar"));
        image.write(&one)?;
        image.write(&other)?;
        let archive = contents(&fs::read(&one)?)?;
        let blob = |descriptor: &serde_json::Value| {
            let digest = descriptor["digest"].as_str().unwrap();
            let digest = digest.strip_prefix("sha256:").unwrap();
            let bytes = &archive[&format!("blobs/sha256/{digest}")];
            assert_eq!(hex(bytes), digest);
            assert_eq!(descriptor["size"].as_u64(), Some(bytes.len() as u64));
            bytes.clone()
        };
        let json = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
        let index = json(&archive["index.json"]);
        let annotations = &index["manifests"][0]["annotations"];
        assert_eq!(annotations["io.containerd.image.name"], "example.org/a/b:1");
        let manifest = json(&blob(&index["manifests"][0]));
        let config = json(&blob(&manifest["config"]));
        assert_eq!(config["config"]["User"], "65532:65532");
        let layer = blob(&manifest["layers"][0]);
        assert_eq!(
            config["rootfs"]["diff_ids"][0],
            format!("sha256:{}", hex(&layer))
        );
        let files = contents(&layer)?;
        let names: Vec<&str> = files
            .keys()
            .map(|name| name.trim_end_matches('/'))
            .collect();
        assert_eq!(names, ["bin", "bin/other", "bin/program", "tmp"]);
        assert_eq!(files["bin/program"], b"a program");
        assert!(fs::read(&one)? == fs::read(&other)?);
        Ok(())
    }
}
