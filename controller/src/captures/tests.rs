use super::*;
use manifest::NamespacedName;

fn pods(names: &[&str]) -> Vec<Sandbox> {
    let named = names
        .iter()
        .map(|name| Sandbox::named(NamespacedName::new("shop", name)));
    named.collect()
}

fn written(revision: u64, names: &[&str]) -> Written {
    Written {
        revision,
        pods: pods(names),
    }
}

fn n1() -> Arc<str> {
    "n1".into()
}

fn write(replaces: Option<u64>, names: &[&str]) -> Write {
    Write {
        node: n1(),
        replaces,
        pods: pods(names),
    }
}

/// F136, P54: writes follow reports, one at a time, and each names what it replaces.
#[test]
fn a_report_is_answered_when_it_is_written_and_one_that_says_nothing_new_at_once() {
    let mut ledger = Ledger::default();
    let (answer, mut first) = oneshot::channel();
    assert_eq!(
        ledger.reported(&n1(), pods(&["a"]), answer),
        Some(write(None, &["a"]))
    );
    let (answer, mut second) = oneshot::channel();
    assert_eq!(ledger.reported(&n1(), pods(&["a", "b"]), answer), None);
    assert!(first.try_recv().is_err(), "nothing is written yet");
    assert_eq!(
        ledger.done(&n1(), written(5, &["a"])),
        Some(write(Some(5), &["a", "b"]))
    );
    assert_eq!(ledger.done(&n1(), written(6, &["a", "b"])), None);
    assert_eq!((first.try_recv(), second.try_recv()), (Ok(true), Ok(true)));

    let (answer, mut third) = oneshot::channel();
    assert_eq!(ledger.reported(&n1(), pods(&["a", "b"]), answer), None);
    assert_eq!(third.try_recv(), Ok(true));
}

/// F136: the agent has moved to the other replica, whose word is later.
#[test]
fn who_writes_over_a_word_that_it_does_not_know_loses_and_takes_that_word() {
    let mut ledger = Ledger::default();
    assert!(ledger.heard(&n1(), written(5, &["a"])));
    let (answer, mut asked) = oneshot::channel();
    assert_eq!(
        ledger.reported(&n1(), pods(&[]), answer),
        Some(write(Some(5), &[]))
    );
    // The other's is on its way to us while ours is on its way to the server.
    assert!(!ledger.heard(&n1(), written(7, &["a", "b"])));
    assert!(ledger.lost(&n1(), Some(written(7, &["a", "b"]))));
    assert_eq!(
        asked.try_recv(),
        Ok(false),
        "the agent is to report again, if it listens"
    );
    assert!(
        !ledger.heard(&n1(), written(7, &["a", "b"])),
        "known by now"
    );
    assert!(ledger.ours().is_empty());
    assert_eq!(
        ledger.holds(&n1(), pods(&[])),
        None,
        "it is the other's to write"
    );
}

#[test]
fn an_echo_is_no_news_and_what_another_writes_is() {
    let mut ledger = Ledger::default();
    let (answer, _asked) = oneshot::channel();
    assert!(ledger.reported(&n1(), pods(&["a"]), answer).is_some());
    assert_eq!(ledger.done(&n1(), written(5, &["a"])), None);
    assert!(!ledger.heard(&n1(), written(5, &["a"])));
    assert!(!ledger.heard(&n1(), written(4, &["b"])), "late");
    assert_eq!(ledger.ours(), [n1()]);
    assert!(ledger.heard(&n1(), written(6, &[])));
    assert!(ledger.ours().is_empty());
}

#[test]
fn what_somebody_deleted_is_written_anew() {
    let mut ledger = Ledger::default();
    let (answer, _asked) = oneshot::channel();
    assert!(ledger.reported(&n1(), pods(&["a"]), answer).is_some());
    assert_eq!(ledger.done(&n1(), written(5, &["a"])), None);
    ledger.gone(&n1());
    let (answer, _asked) = oneshot::channel();
    assert_eq!(
        ledger.reported(&n1(), pods(&["a"]), answer),
        Some(write(None, &["a"]))
    );
}
