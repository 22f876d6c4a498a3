use std::fs;
use std::path::PathBuf;

use super::*;

struct Folder {
    dir: tempfile::TempDir,
    memory: Memory,
}

impl Folder {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().expect("a folder"),
            memory: Memory::new("istio-system"),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("writes");
    }

    /// Scans until nothing waits for a second look; returns "+" and "-" lines, and the findings.
    fn scan(&mut self) -> (Vec<String>, Vec<String>) {
        let mut changes = Vec::new();
        loop {
            let scan = self.memory.scan(self.dir.path());
            let origin = |u: &Arc<Upsert>| format!("+{} {}", u.object.key(), u.origin);
            changes.extend(scan.batch.upserts.iter().map(origin));
            changes.extend(scan.batch.removals.iter().map(|key| format!("-{key}")));
            if !scan.unconfirmed {
                break;
            }
        }
        (
            changes,
            self.memory
                .diagnostics
                .iter()
                .map(ToString::to_string)
                .collect(),
        )
    }
}

const NAMESPACE: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n";
const POLICY: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: a}\nspec: {action: DENY, rules: [{}]}\n";

fn lines(lines: &[&str]) -> Vec<String> {
    lines.iter().map(ToString::to_string).collect()
}

#[test]
fn objects_come_change_and_go_with_their_files() {
    let mut folder = Folder::new();
    assert_eq!(folder.scan(), (vec![], vec![]));
    folder.write("a.yaml", NAMESPACE);
    folder.write(".hidden.yaml", NAMESPACE);
    folder.write("notes.txt", NAMESPACE);
    assert_eq!(folder.scan().0, lines(&["+Namespace a a.yaml:1"]));
    assert_eq!(folder.scan().0, lines(&[]), "nothing changed");
    folder.write("a.yaml", &format!("{NAMESPACE}---\n{POLICY}"));
    assert_eq!(
        folder.scan().0,
        lines(&["+AuthorizationPolicy a/p a.yaml:5"])
    );
    folder.write("a.yaml", POLICY);
    let moved = folder.scan().0;
    assert!(moved.contains(&"-Namespace a".to_owned()), "{moved:?}");
    fs::remove_file(folder.path("a.yaml")).expect("removes");
    assert_eq!(folder.scan().0, lines(&["-AuthorizationPolicy a/p"]));
}

#[test]
fn a_broken_version_keeps_the_last_good_one_and_says_so() {
    let mut folder = Folder::new();
    folder.write("a.yaml", &format!("{NAMESPACE}---\n{POLICY}"));
    folder.scan();
    folder.write(
        "a.yaml",
        &format!("{NAMESPACE}---\n{}", POLICY.replace("DENY", "DENI")),
    );
    let (changes, findings) = folder.scan();
    assert_eq!(changes, lines(&[]));
    assert_eq!(
        findings,
        lines(&[
            "a.yaml:5: warning: AuthorizationPolicy a/p: the last good version stays in effect",
            "a.yaml:8: error: AuthorizationPolicy a/p: spec.action: invalid value: string \"DENI\", expected one of ALLOW, DENY, AUDIT, CUSTOM",
        ])
    );
    folder.write(
        "a.yaml",
        &format!("{NAMESPACE}---\n{}", POLICY.replace("[{}]", "[{}, {}]")),
    );
    assert_eq!(
        folder.scan(),
        (lines(&["+AuthorizationPolicy a/p a.yaml:5"]), vec![])
    );
}

#[test]
fn a_policy_without_a_last_good_version_refuses_and_is_replaced_when_repaired() {
    let mut folder = Folder::new();
    folder.write("a.yaml", &POLICY.replace("DENY", "DENI"));
    folder.scan();
    let refuses = |folder: &Folder| folder.memory.sent.values().any(|held| held.is_fallback);
    assert!(refuses(&folder));
    folder.write("a.yaml", &POLICY.replace("DENY", "ALOW"));
    folder.scan();
    assert!(refuses(&folder), "a refusal is no good version to keep");
    assert_eq!(folder.memory.last_good().len(), 0);
    folder.write("a.yaml", POLICY);
    folder.scan();
    assert!(!refuses(&folder));
}

#[test]
fn a_document_without_a_name_may_be_any_that_is_missing() {
    let mut folder = Folder::new();
    folder.write("a.yaml", &format!("{NAMESPACE}---\n{POLICY}"));
    folder.scan();
    folder.write(
        "a.yaml",
        &format!("{NAMESPACE}---\n{}", POLICY.replace("name: p", "name: [")),
    );
    let (changes, findings) = folder.scan();
    assert_eq!(changes, lines(&[]));
    assert!(
        findings
            .iter()
            .any(|f| f.contains("may be the one that cannot be read")),
        "{findings:?}"
    );
}

#[test]
fn two_definitions_of_one_object_are_reported_and_the_later_one_counts() {
    let mut folder = Folder::new();
    let service = |name: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: EnvoyFilter\nmetadata: {{name: {name}}}\n"
        )
    };
    folder.write("a.yaml", NAMESPACE);
    folder.write(
        "b.yaml",
        &format!("{NAMESPACE}---\n{}---\n{}", service("www"), service("www")),
    );
    let (changes, findings) = folder.scan();
    assert_eq!(changes, lines(&["+Namespace a b.yaml:1"]));
    let twice: Vec<_> = findings
        .into_iter()
        .filter(|f| f.contains("again"))
        .collect();
    assert_eq!(
        twice,
        lines(&[
            "a.yaml:1: error: Namespace a: metadata.name: is defined again at b.yaml:1; the later definition counts, this one has no effect",
            "b.yaml:5: error: EnvoyFilter default/www: metadata.name: is defined again at b.yaml:9; the later definition counts, this one has no effect",
        ])
    );
    folder.write("b.yaml", "");
    assert_eq!(folder.scan(), (lines(&["+Namespace a a.yaml:1"]), vec![]));
}

#[test]
fn an_editor_that_removes_and_writes_anew_removes_nothing() {
    let mut folder = Folder::new();
    folder.write("a.yaml", NAMESPACE);
    folder.scan();
    fs::rename(folder.path("a.yaml"), folder.path("a.yaml~")).expect("renames");
    let between = folder.memory.scan(folder.dir.path());
    assert!(between.unconfirmed && between.batch.removals.is_empty());
    folder.write("a.yaml", NAMESPACE);
    assert_eq!(folder.scan(), (vec![], vec![]));
    folder.write("a.yaml", "");
    let truncated = folder.memory.scan(folder.dir.path());
    assert!(truncated.unconfirmed && truncated.batch.removals.is_empty());
    folder.write("a.yaml.new", NAMESPACE);
    fs::rename(folder.path("a.yaml.new"), folder.path("a.yaml")).expect("renames");
    assert_eq!(folder.scan(), (vec![], vec![]));
}

#[test]
fn what_cannot_be_read_keeps_what_was_known() {
    let mut folder = Folder::new();
    folder.write("a.yaml", NAMESPACE);
    folder.write("b.yaml", POLICY);
    folder.scan();
    fs::write(folder.path("a.yaml"), b"kind: \xff\xfe\n").expect("writes");
    let (changes, findings) = folder.scan();
    assert_eq!(changes, lines(&[]));
    assert_eq!(
        findings,
        lines(&[
            "a.yaml:1: error: the file is not UTF-8 text; the last good version of its objects stays"
        ])
    );
    fs::remove_dir_all(folder.dir.path()).expect("removes");
    let (changes, findings) = folder.scan();
    assert_eq!(changes, lines(&[]));
    assert!(
        findings
            .iter()
            .any(|f| f.contains("the folder cannot be read")),
        "{findings:?}"
    );
}

#[test]
fn what_is_no_file_stops_nothing_and_is_named() {
    let mkfifo = |path: &PathBuf| {
        nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRUSR).expect("makes a FIFO");
    };
    let mut folder = Folder::new();
    folder.write("b.yaml", NAMESPACE);
    mkfifo(&folder.path("a.yaml"));
    fs::create_dir(folder.path("c.yaml")).expect("makes a directory");
    std::os::unix::fs::symlink("/dev/zero", folder.path("d.yaml")).expect("links");
    let _socket = std::os::unix::net::UnixListener::bind(folder.path("e.yaml")).expect("binds");
    fs::File::create(folder.path("f.yaml"))
        .and_then(|file| file.set_len(1 << 40))
        .expect("makes a large file");
    let scan = folder.memory.scan(folder.dir.path());
    assert_eq!(scan.batch.unread, 5);
    assert_eq!(scan.batch.upserts.len(), 1);
    let rest = "nothing is known of its objects";
    assert_eq!(
        folder.scan().1,
        [
            format!("a.yaml: error: the file is a FIFO; only regular files are read; {rest}"),
            format!("c.yaml: error: the file is a directory; only regular files are read; {rest}"),
            format!("d.yaml: error: the file is a device; only regular files are read; {rest}"),
            format!("e.yaml: error: the file is a socket; only regular files are read; {rest}"),
            format!("f.yaml: error: the file is larger than 64 MiB; split it; {rest}"),
        ]
    );
    // In the place of a file that was read, it takes nothing away.
    fs::remove_file(folder.path("b.yaml")).expect("removes");
    mkfifo(&folder.path("b.yaml"));
    let (changes, findings) = folder.scan();
    assert_eq!(changes, lines(&[]));
    assert_eq!(
        findings[1],
        "b.yaml: error: the file is a FIFO; only regular files are read; the last good version of its objects stays"
    );
    for name in ["a.yaml", "d.yaml", "e.yaml", "f.yaml"] {
        fs::remove_file(folder.path(name)).expect("removes");
    }
    fs::remove_dir(folder.path("c.yaml")).expect("removes");
    fs::remove_file(folder.path("b.yaml")).expect("removes");
    folder.write("b.yaml", NAMESPACE);
    folder.write("p.yaml", POLICY);
    assert_eq!(
        folder.scan(),
        (lines(&["+AuthorizationPolicy a/p p.yaml:1"]), vec![])
    );
    assert_eq!(folder.memory.scan(folder.dir.path()).batch.unread, 0);
}

/// However often the folder is looked through meanwhile: an editor that moves a file away and writes it anew takes nothing away.
#[test]
fn what_is_missing_is_removed_after_its_time_and_not_by_many_scans() {
    let mut folder = Folder::new();
    let time = Duration::from_millis(200);
    folder.memory = Memory::new("istio-system").remove_after(time);
    folder.write("a.yaml", &format!("{NAMESPACE}---\n{POLICY}"));
    folder.write("b.yaml", &NAMESPACE.replace("name: a", "name: b"));
    assert_eq!(folder.scan().0.len(), 3);
    folder.write("a.yaml", NAMESPACE);
    fs::remove_file(folder.path("b.yaml")).expect("removes");
    let begun = Instant::now();
    let mut removed = Vec::new();
    while removed.len() < 2 {
        let scan = folder.memory.scan(folder.dir.path());
        assert!(scan.batch.upserts.is_empty());
        removed.extend(scan.batch.removals);
        assert_eq!(scan.unconfirmed, removed.len() < 2);
        assert!(removed.is_empty() || begun.elapsed() >= time);
    }
    assert_eq!(folder.scan().0, lines(&[]));
}
