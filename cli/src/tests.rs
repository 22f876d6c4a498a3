//! `keelson validate` on the manifests of `tests/manifests`, as a shell would call it.

use std::path::{Path, PathBuf};

use crate::{Cli, run};
use clap::{CommandFactory as _, Parser as _};

fn manifests(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/manifests")
        .join(name)
}

/// Exit code, standard output, standard error. Paths are relative to the manifests of the tests.
fn keelson(args: &[&str]) -> (u8, String, String) {
    let cli = Cli::try_parse_from([&["keelson"], args].concat()).expect("well formed arguments");
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = run(&cli, &mut out, &mut err);
    let text = |bytes| {
        let text = String::from_utf8(bytes).expect("it is text");
        text.replace(
            &format!("{}/", manifests("").display()).replace("//", "/"),
            "",
        )
    };
    (code, text(out), text(err))
}

fn validate(name: &str, more: &[&str]) -> (u8, String, String) {
    let path = manifests(name).display().to_string();
    keelson(&[&["validate", "-f", &path], more].concat())
}

#[test]
fn manifests_in_order_have_nothing_said_about_them() {
    let expected = "0 errors, 0 warnings, 0 remarks in 1 file (2 objects that the mesh reads)\n";
    let said = (0, expected.to_owned(), String::new());
    assert_eq!(validate("good", &[]), said);
    assert_eq!(validate("good/shop.yaml", &[]), said);
}

#[test]
fn each_defect_has_its_sentence_with_file_line_and_field() {
    let (code, out, err) = validate("bad", &[]);
    assert_eq!((code, err.as_str()), (1, ""), "{out}");
    for sentence in [
        "bad/policies.yaml:10: error: AuthorizationPolicy shop/scheme: spec.rules[0].from[0].source.principals[0]: principals are written without the scheme",
        "bad/policies.yaml:22: error: AuthorizationPolicy shop/paths: spec.rules[0].to[0].operation.paths: ",
        "bad/policies.yaml:27: error: Service: metadata.Name: unknown field metadata.Name, did you mean metadata.name",
        "bad/policies.yaml:30: error: PeerAuthentication shop/default: metadata.name: is defined again at bad/policies.yaml:35",
        "bad/routes.yaml:10: warning: DestinationRule shop/reviews: spec.host: no Service shop/review is in these files",
    ] {
        assert!(out.contains(sentence), "{sentence}\n{out}");
    }
}

#[test]
fn programs_get_the_findings_as_fields() {
    let (code, out, _) = validate("bad", &["-o", "json", "--quiet"]);
    let found: Vec<serde_json::Value> = serde_json::from_str(&out).expect("JSON");
    assert_eq!(code, 1);
    let scheme = found
        .iter()
        .find(|one| one["name"] == "scheme" && one["severity"] == "error")
        .expect("it is there");
    assert_eq!(
        (&scheme["line"], &scheme["kind"], &scheme["severity"]),
        (&10.into(), &"AuthorizationPolicy".into(), &"error".into())
    );
    assert!(found.iter().all(|one| one["severity"] != "info"), "{out}");
    let (_, yaml, _) = validate("bad", &["-o", "yaml", "--quiet"]);
    assert!(yaml.contains("name: scheme\n"), "{yaml}");
}

#[test]
fn what_cannot_be_read_has_a_code_of_its_own() {
    let (code, out, err) = validate("nowhere.yaml", &[]);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(
        err.starts_with("keelson: cannot read nowhere.yaml: No such file"),
        "{err}"
    );
    let (code, _, err) = validate("", &[]);
    assert_eq!(code, 2);
    assert!(err.contains("-R looks into its folders too"), "{err}");
    assert_eq!(validate("", &["-R"]).0, 1);
    assert!(Cli::try_parse_from(["keelson", "validate"]).is_err());
}

/// The help of a command as a page shows it.
fn shown(words: &[&str]) -> String {
    let mut command = Cli::command().term_width(100);
    command.build();
    let mut at = &mut command;
    for word in words {
        at = at
            .find_subcommand_mut(word)
            .expect("there is such a command");
    }
    let line = [&["keelson"], words].concat().join(" ");
    let help = at.render_long_help().to_string();
    let lines: Vec<_> = help.lines().map(str::trim_end).collect();
    format!(
        "```text\n$ {line} --help\n{}\n```\n",
        lines.join("\n").trim_end()
    )
}

#[test]
fn the_page_shows_the_help_of_every_command() {
    const PAGE: &str = include_str!("../../docs/cli.md");
    let mut all = vec![vec![]];
    for command in Cli::command().get_subcommands() {
        all.push(vec![command.get_name().to_owned()]);
    }
    let missing: Vec<String> = all
        .iter()
        .map(|words| shown(&words.iter().map(String::as_str).collect::<Vec<_>>()))
        .filter(|help| !PAGE.contains(help.as_str()))
        .collect();
    assert!(
        missing.is_empty(),
        "docs/cli.md lacks\n\n{}",
        missing.join("\n")
    );
}
