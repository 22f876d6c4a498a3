//! What conditions say, in words. Pure.

use compile::index::authorization::is_for_want_of_a_waypoint;
use k8s_openapi::jiff::Timestamp;
use manifest::{Diagnostic, Origin, Severity};
use serde_json::{Value, json};

use super::Tracked;
use super::progress::Progress;

/// One condition, without its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) holds: bool,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// What is to be said of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) generation: i64,
    /// The generation that nodes act by: an earlier one, if the newest is not accepted.
    pub(super) in_effect: i64,
    pub(super) accepted: Condition,
    /// Of a policy, which nodes have to take.
    pub(super) programmed: Option<Condition>,
}

/// What becomes of an object's conditions.
#[derive(Debug)]
pub(super) struct Merged {
    pub(super) conditions: Vec<Value>,
    pub(super) changed: bool,
    /// Its author is to be told that it is not accepted.
    pub(super) newly_refused: bool,
}

impl State {
    /// Whether what was written still says what is to be said. On how many nodes a policy is in effect was true when it was
    /// written: nodes that come and go rewrite nothing.
    pub(super) fn says_all_of(&self, wanted: &Self) -> bool {
        let is_programmed = |state: &Self| state.programmed.as_ref().is_some_and(|one| one.holds);
        self.generation == wanted.generation
            && self.in_effect == wanted.in_effect
            && self.accepted == wanted.accepted
            && is_programmed(self) == is_programmed(wanted)
            && (is_programmed(wanted) || self.programmed == wanted.programmed)
    }
}

/// The newest generation that something is known of: findings can be of a later one than what is in effect.
pub(super) fn generation(in_effect: i64, findings: &[&Diagnostic]) -> i64 {
    let of = findings.iter().filter_map(|finding| match &finding.origin {
        Origin::Object { generation, .. } => Some(*generation),
        Origin::File { .. } => None,
    });
    of.fold(in_effect, i64::max)
}

/// The sentences of `keelson validate` about an object. What only a waypoint can check is no error of a policy that a waypoint is
/// told of.
pub(super) fn accepted(findings: &[&Diagnostic], is_at_waypoint: bool) -> Condition {
    let severity_of = |finding: &Diagnostic| match finding.severity {
        Severity::Error if is_at_waypoint && is_for_want_of_a_waypoint(finding) => {
            Severity::Warning
        }
        severity => severity,
    };
    let sentences = |severity| {
        let of = findings
            .iter()
            .filter(|finding| severity_of(finding) == severity);
        let sentences: Vec<String> = of
            .map(|finding| match finding.field.as_str() {
                "" => finding.message.clone(),
                field => format!("{field}: {}", finding.message),
            })
            .collect();
        sentences.join("; ")
    };
    let (errors, warnings) = (sentences(Severity::Error), sentences(Severity::Warning));
    if !errors.is_empty() {
        let message = if warnings.is_empty() {
            errors
        } else {
            format!("{errors}; {warnings}")
        };
        return Condition {
            holds: false,
            reason: "Invalid",
            message,
        };
    }
    let (reason, message) = if warnings.is_empty() {
        ("Accepted", "in order".to_owned())
    } else {
        ("AcceptedWithWarnings", warnings)
    };
    Condition {
        holds: true,
        reason,
        message,
    }
}

/// Whether all nodes of all replicas have taken the policy.
pub(super) fn programmed(policy: &Tracked, replicas: &[Progress]) -> Condition {
    let nodes: usize = replicas.iter().map(|replica| replica.nodes).sum();
    let behind = replicas
        .iter()
        .filter(|replica| replica.nodes > 0 && !replica.has_taken(policy));
    if behind.count() > 0 {
        return Condition {
            holds: false,
            reason: "Pending",
            message: "not all connected nodes have taken it yet".to_owned(),
        };
    }
    if nodes == 0 {
        return Condition {
            holds: false,
            reason: "NoNodes",
            message: "no node is connected".to_owned(),
        };
    }
    let message = format!("in effect on {nodes} of {nodes} connected nodes");
    Condition {
        holds: true,
        reason: "Programmed",
        message,
    }
}

/// Puts a state into the conditions that an object has. None if somebody else keeps them: the list has one owner.
pub(super) fn merge(there: &[Value], state: &State) -> Option<Merged> {
    let find = |kind: &str| there.iter().find(|condition| condition["type"] == kind);
    if there.iter().any(|condition| {
        ![ACCEPTED, PROGRAMMED]
            .map(Value::from)
            .contains(&condition["type"])
    }) {
        return None;
    }
    let now = Timestamp::now().to_string();
    let mut changed = false;
    let mut conditions = Vec::new();
    let programmed = state.programmed.as_ref();
    let programmed = programmed.map(|one| (PROGRAMMED, one, state.in_effect));
    let accepted = (ACCEPTED, &state.accepted, state.generation);
    for (kind, condition, generation) in [accepted].into_iter().chain(programmed) {
        let known = find(kind);
        let status = if condition.holds { "True" } else { "False" };
        let same_status = known.filter(|known| known["status"] == status);
        let since = same_status.and_then(|known| known["lastTransitionTime"].as_str());
        let mut new = json!({
            "type": kind, "status": status, "reason": condition.reason, "message": condition.message,
            "observedGeneration": generation,
            "lastTransitionTime": since.unwrap_or(&now),
        });
        // As many nodes as there were then.
        if let (PROGRAMMED, true, Some(known)) = (kind, condition.holds, same_status)
            && known["observedGeneration"] == new["observedGeneration"]
        {
            new["message"] = known["message"].clone();
        }
        changed |= known != Some(&new);
        conditions.push(new);
    }
    let known = find(ACCEPTED);
    let was_refused = known.is_some_and(|known| {
        known["status"] == "False"
            && known["observedGeneration"] == state.generation
            && known["message"] == state.accepted.message.as_str()
    });
    Some(Merged {
        conditions,
        changed,
        newly_refused: !state.accepted.holds && !was_refused,
    })
}

const ACCEPTED: &str = "keelson.io/Accepted";
const PROGRAMMED: &str = "keelson.io/Programmed";

#[cfg(test)]
mod tests {
    use manifest::ObjectKey;

    use super::*;

    fn finding(severity: Severity, generation: i64, message: &str) -> Diagnostic {
        let origin = Origin::Object {
            uid: "u".into(),
            generation,
        };
        let key = ObjectKey::new(manifest::Kind::AuthorizationPolicy, "shop", "guard");
        Diagnostic::new(severity, &origin, Some(&key), message).field("spec.rules[0]")
    }

    fn policy(generation: i64) -> Tracked {
        Tracked {
            uid: "u".into(),
            generation,
            snapshot: 7,
        }
    }

    fn state(generation: i64, findings: &[&Diagnostic], replicas: &[Progress]) -> State {
        State {
            generation: super::generation(generation, findings),
            in_effect: generation,
            accepted: accepted(findings, false),
            programmed: Some(programmed(&policy(generation), replicas)),
        }
    }

    fn replica(nodes: usize, taken: &[i64]) -> Progress {
        Progress {
            nodes,
            taken: taken
                .iter()
                .map(|generation| ("u".to_owned(), *generation))
                .collect(),
        }
    }

    /// Where no waypoint is told of a policy, what only a waypoint checks is an error; other errors always are.
    #[test]
    fn what_a_waypoint_checks_is_no_error_of_a_policy_that_one_is_told_of() {
        let want = "only a waypoint checks it; for connections that do not come through one, the rule allows nothing";
        let mut found = vec![finding(Severity::Error, 1, want)];
        let said: Vec<&Diagnostic> = found.iter().collect();
        assert_eq!(accepted(&said, false).reason, "Invalid");
        let there = accepted(&said, true);
        assert_eq!((there.holds, there.reason), (true, "AcceptedWithWarnings"));
        assert!(there.message.contains("waypoint"), "{}", there.message);
        found.push(finding(Severity::Error, 1, "unknown field"));
        let said: Vec<&Diagnostic> = found.iter().collect();
        assert_eq!(accepted(&said, true).reason, "Invalid");
    }

    /// F127: what is wrong is said of the generation that has it, in the sentence of `keelson validate`.
    #[test]
    fn a_policy_that_is_broken_now_says_why_of_its_new_generation() {
        let wrong = finding(Severity::Error, 4, "unknown field form, did you mean from");
        let state = state(3, &[&wrong], &[replica(2, &[3])]);
        assert_eq!(state.generation, 4);
        assert!(!state.accepted.holds);
        assert_eq!(
            state.accepted.message,
            "spec.rules[0]: unknown field form, did you mean from"
        );
        let merged = merge(&[], &state).expect("ours");
        assert!(merged.changed && merged.newly_refused);
        assert_eq!(
            merged.conditions[1]["observedGeneration"], 3,
            "the last good version is what nodes act by"
        );
        let again = merge(&merged.conditions, &state).expect("ours");
        assert!(!again.changed && !again.newly_refused, "{again:?}");
    }

    #[test]
    fn it_is_programmed_when_the_nodes_of_all_replicas_have_taken_it() {
        for (replicas, holds, reason) in [
            (
                &[replica(1, &[3]), replica(1, &[3])][..],
                true,
                "Programmed",
            ),
            (&[replica(1, &[3]), replica(1, &[2])], false, "Pending"),
            (&[replica(1, &[3]), replica(0, &[])], true, "Programmed"),
            (&[replica(0, &[])], false, "NoNodes"),
        ] {
            let condition = programmed(&policy(3), replicas);
            assert_eq!((condition.holds, condition.reason), (holds, reason));
        }
    }

    /// Writes are bounded.
    #[test]
    fn a_node_that_joins_rewrites_nothing() {
        let one = state(3, &[], &[replica(1, &[3])]);
        let two = state(3, &[], &[replica(2, &[3])]);
        assert_ne!(one, two);
        assert!(one.says_all_of(&two));
        let merged = merge(&[], &one).expect("ours");
        assert!(!merge(&merged.conditions, &two).expect("ours").changed);
        let later = state(4, &[], &[replica(2, &[4])]);
        assert!(!one.says_all_of(&later));
        assert!(merge(&merged.conditions, &later).expect("ours").changed);
    }

    /// Issue 12 B5: what no node takes has one condition, with the sentences of `keelson validate`.
    #[test]
    fn a_traffic_object_is_accepted_or_says_why_not_and_nothing_of_nodes() {
        let warning = finding(Severity::Warning, 3, "has the host too");
        let traffic = State {
            programmed: None,
            ..state(3, &[&warning], &[])
        };
        let merged = merge(&[], &traffic).expect("ours");
        assert_eq!(merged.conditions.len(), 1, "{merged:?}");
        assert_eq!(merged.conditions[0]["reason"], "AcceptedWithWarnings");
        assert!(!merged.newly_refused);
        let again = merge(&merged.conditions, &traffic).expect("ours");
        assert!(!again.changed && traffic.says_all_of(&traffic));
        let fine = State {
            programmed: None,
            ..state(3, &[], &[])
        };
        assert!(!traffic.says_all_of(&fine));
        assert!(merge(&merged.conditions, &fine).expect("ours").changed);
    }

    #[test]
    fn conditions_that_another_control_plane_keeps_are_left_to_it() {
        let theirs = json!({"type": "ZtunnelAccepted", "status": "True"});
        let state = state(3, &[], &[]);
        assert!(merge(&[theirs], &state).is_none());
    }
}
