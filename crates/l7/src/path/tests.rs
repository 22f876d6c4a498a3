use proptest::prelude::*;
use test_case::test_case;

use super::*;

#[test_case("/", "/")]
#[test_case("/a/b", "/a/b"; "plain")]
#[test_case("/a/b/", "/a/b/"; "trailing slash stays")]
#[test_case("//a///b", "/a/b"; "slashes merge")]
#[test_case("/a/./b", "/a/b"; "dot")]
#[test_case("/a/../b", "/b"; "dots")]
#[test_case("/a/b/..", "/a/"; "dots at the end")]
#[test_case("/../../x", "/x"; "dots at the root")]
#[test_case("/a/%2e%2E/b", "/b"; "escaped dots")]
#[test_case("/a%2Fb", "/a/b"; "escaped slash")]
#[test_case("/a%2f..%2fb", "/b"; "escaped slash and dots")]
#[test_case("/a\\b", "/a/b"; "backslash")]
#[test_case("/a%5cb", "/a/b"; "escaped backslash")]
#[test_case("/%61dmin", "/admin"; "escaped letter")]
#[test_case("/a%3fb", "/a%3Fb"; "capital digits")]
#[test_case("/a%252e", "/a%252e"; "never twice")]
#[test_case("/100%", "/100%"; "no escape")]
#[test_case("/a%zz", "/a%zz"; "no digits")]
#[test_case("/.well-known/x", "/.well-known/x"; "a name with a dot")]
#[test_case("/a/...", "/a/..."; "three dots are a name")]
#[test_case("/a;v=1/b", "/a;v=1/b"; "parameters stay")]
#[test_case("/a?x=/../b", "/a"; "the query is no path")]
#[test_case("/a#/../b", "/a"; "nor is the fragment")]
fn the_normal_form(target: &str, normal: &str) {
    assert_eq!(Path::new(target).unwrap().normal(), normal);
}

#[test_case("/a%2Fb", "/a%2Fb"; "escapes go on as they came")]
#[test_case("//a", "//a"; "so do empty segments")]
#[test_case("/a/../b", "/b"; "dots are resolved")]
#[test_case("/a\\b", "/a/b"; "backslashes too")]
fn what_goes_on(target: &str, forwarded: &str) {
    assert_eq!(Path::new(target).unwrap().forwarded(), forwarded);
}

#[test]
fn what_cannot_be_judged_is_refused() {
    assert_eq!(Path::new("/a%00b"), Err(PathError::Control));
    assert_eq!(Path::new("/a\u{7}"), Err(PathError::Control));
    assert_eq!(Path::new("/%7f"), Err(PathError::Control));
    assert_eq!(Path::new("a/b"), Err(PathError::NoSlash));
    assert_eq!(Path::new(""), Err(PathError::NoSlash));
    assert!(Path::new("*").is_ok());
}

proptest! {
    #[test]
    fn the_normal_form_is_its_own(target in "[/\\\\]([a-c%25eEfF./\\\\]|%2[eEfF]|%5[cC]|%61){0,24}") {
        let once = Path::new(&target).unwrap();
        // Decoding once may leave what looks like an escape: only that is not looked at again.
        prop_assume!(!once.normal().contains('%'));
        let again = Path::new(once.normal()).unwrap();
        prop_assert_eq!(again.normal(), once.normal());
        prop_assert!(!once.normal().contains("//") && !once.normal().contains('\\'));
        let dots = once.normal().split('/').any(|s| matches!(s, "." | ".."));
        prop_assert!(!dots, "{}", once.normal());
    }

    #[test]
    fn any_target_is_judged_or_refused(target in "\\PC{0,40}") {
        if let Ok(path) = Path::new(&target) {
            prop_assert!(path.normal() == "*" || path.normal().starts_with('/'));
        }
    }
}
