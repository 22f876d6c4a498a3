use std::time::{Duration, Instant};

use abi::PodState;
use proptest::prelude::*;

use super::{Facts, Phase, Step, Times, Wish, next};

const TIMES: Times = Times {
    certificate_wait: Duration::from_secs(5),
    release_wait: Duration::from_secs(2),
    drain_deadline: Duration::from_secs(30),
};

const NEW: Facts = Facts {
    kernel: Some(PodState::Pending),
    held: false,
    is_awaited: true,
    certificate: None,
    wanted_for: Duration::ZERO,
    carried: 0,
};

fn due(phase: &Phase, wish: Wish, facts: &Facts) -> Step {
    next(phase, wish, facts, TIMES, Instant::now())
}

fn ago(seconds: u64) -> Instant {
    Instant::now() - Duration::from_secs(seconds)
}

#[test]
fn a_new_pod_is_captured_with_its_certificate_or_after_the_wait() {
    let with = |certificate, wanted_for| Facts {
        certificate,
        wanted_for: Duration::from_secs(wanted_for),
        ..NEW
    };
    let of = |facts| due(&Phase::Unknown, Wish::Captured, &facts);
    assert_eq!(of(with(None, 0)), Step::Identify);
    assert_eq!(of(with(Some(false), 0)), Step::AwaitCertificate);
    assert_eq!(of(with(Some(false), 4)), Step::AwaitCertificate);
    assert_eq!(of(with(Some(false), 5)), Step::Capture);
    assert_eq!(of(with(Some(true), 0)), Step::Capture);
    assert_eq!(due(&Phase::Captured, Wish::Captured, &NEW), Step::Follow);
}

#[test]
fn a_pod_that_the_kernel_holds_captured_waits_for_no_certificate() {
    let facts = Facts {
        kernel: Some(PodState::Captured),
        certificate: Some(false),
        ..NEW
    };
    assert_eq!(due(&Phase::Unknown, Wish::Captured, &facts), Step::Capture);
}

#[test]
fn a_capture_that_failed_is_tried_again_when_its_time_has_come() {
    let facts = Facts {
        certificate: Some(true),
        ..NEW
    };
    let later = Phase::Failed(Instant::now() + Duration::from_secs(60));
    assert_eq!(due(&later, Wish::Captured, &facts), Step::Nothing);
    assert_eq!(
        due(&Phase::Failed(ago(1)), Wish::Captured, &facts),
        Step::Capture
    );
}

#[test]
fn a_pod_that_leaves_tells_its_peers_then_ends_tunnels_then_is_released() {
    let carrying = Facts { carried: 1, ..NEW };
    let of = |phase, facts: &Facts| due(&phase, Wish::Exempt, facts);
    assert_eq!(of(Phase::Captured, &carrying), Step::Leave);
    assert_eq!(of(Phase::Releasing(ago(1), false), &NEW), Step::Nothing);
    assert_eq!(of(Phase::Releasing(ago(2), false), &NEW), Step::EndTunnels);
    assert_eq!(of(Phase::Releasing(ago(3), true), &carrying), Step::Nothing);
    assert_eq!(of(Phase::Releasing(ago(3), true), &NEW), Step::Release);
    assert_eq!(
        of(Phase::Releasing(ago(30), true), &carrying),
        Step::Release
    );
    assert_eq!(of(Phase::Exempt, &NEW), Step::Nothing);
}

#[test]
fn who_comes_back_while_leaving_is_captured_over_what_is_there() {
    let facts = Facts {
        certificate: Some(true),
        carried: 3,
        ..NEW
    };
    for over in [false, true] {
        assert_eq!(
            due(&Phase::Releasing(ago(1), over), Wish::Captured, &facts),
            Step::Capture
        );
    }
}

#[test]
fn what_an_earlier_agent_left_is_adopted_only_where_nobody_waits() {
    let of = |kernel, held, is_awaited| {
        let facts = Facts {
            kernel,
            held,
            is_awaited,
            ..NEW
        };
        due(&Phase::Unknown, Wish::Unknown, &facts)
    };
    assert_eq!(of(Some(PodState::Exempt), false, false), Step::AdoptExempt);
    assert_eq!(of(Some(PodState::Joining), false, false), Step::UndoJoining);
    assert_eq!(of(Some(PodState::Exempt), false, true), Step::Nothing);
    assert_eq!(of(Some(PodState::Exempt), true, false), Step::Nothing);
    assert_eq!(of(Some(PodState::Captured), false, false), Step::Nothing);
    assert_eq!(of(Some(PodState::Pending), false, false), Step::Nothing);
    assert_eq!(of(None, false, false), Step::Nothing);
}

#[test]
fn a_pod_that_was_never_captured_is_let_pass_and_one_that_was_leaves() {
    for phase in [Phase::Unknown, Phase::Failed(ago(1))] {
        assert_eq!(due(&phase, Wish::Exempt, &NEW), Step::LetPass);
        let held = Facts { held: true, ..NEW };
        assert_eq!(due(&phase, Wish::Exempt, &held), Step::Leave);
        let captured = Facts {
            kernel: Some(PodState::Captured),
            ..NEW
        };
        assert_eq!(due(&phase, Wish::Exempt, &captured), Step::Leave);
    }
}

fn phases() -> impl Strategy<Value = Phase> {
    prop_oneof![
        Just(Phase::Unknown),
        Just(Phase::Captured),
        Just(Phase::Exempt),
        (0_u64..10).prop_map(|seconds| Phase::Failed(ago(seconds))),
        (0_u64..10)
            .prop_map(|seconds| Phase::Failed(Instant::now() + Duration::from_secs(seconds + 60))),
        (0_u64..60, any::<bool>()).prop_map(|(seconds, over)| Phase::Releasing(ago(seconds), over)),
    ]
}

fn facts() -> impl Strategy<Value = Facts> {
    let kernel = prop_oneof![
        Just(None),
        Just(Some(PodState::Exempt)),
        Just(Some(PodState::Pending)),
        Just(Some(PodState::Joining)),
        Just(Some(PodState::Captured)),
    ];
    let certificate = prop_oneof![Just(None), any::<bool>().prop_map(Some)];
    (
        kernel,
        any::<bool>(),
        any::<bool>(),
        certificate,
        0_u64..10,
        0_usize..3,
    )
        .prop_map(
            |(kernel, held, is_awaited, certificate, wanted_for, carried)| Facts {
                kernel,
                held,
                is_awaited,
                certificate,
                wanted_for: Duration::from_secs(wanted_for),
                carried,
            },
        )
}

proptest! {
    /// Only the controller's word takes a pod out of the mesh.
    #[test]
    fn without_a_word_nothing_that_is_captured_is_let_go(phase in phases(), facts in facts()) {
        let step = due(&phase, Wish::Unknown, &facts);
        let is_captured = facts.held || facts.kernel == Some(PodState::Captured) || phase == Phase::Captured;
        prop_assert!(!is_captured || step == Step::Nothing, "{step:?}");
        prop_assert!(matches!(step, Step::Nothing | Step::AdoptExempt | Step::UndoJoining), "{step:?}");
    }

    /// Tunnels and rules go only after peers have been told, and what is captured is never let pass at once.
    #[test]
    fn what_is_captured_leaves_by_every_step(phase in phases(), facts in facts()) {
        let step = due(&phase, Wish::Exempt, &facts);
        let is_captured = facts.held || facts.kernel == Some(PodState::Captured) || phase == Phase::Captured;
        prop_assert!(step != Step::LetPass || !is_captured);
        prop_assert!(step != Step::EndTunnels || matches!(phase, Phase::Releasing(_, false)));
        prop_assert!(step != Step::Release || matches!(phase, Phase::Releasing(_, true)));
    }

    /// What is wanted is never undone on the way.
    #[test]
    fn what_is_wanted_is_only_captured_or_waited_for(phase in phases(), facts in facts()) {
        let step = due(&phase, Wish::Captured, &facts);
        let allowed = [Step::Nothing, Step::Identify, Step::AwaitCertificate, Step::Capture, Step::Follow];
        prop_assert!(allowed.contains(&step), "{step:?}");
        prop_assert!(step != Step::Nothing || matches!(phase, Phase::Failed(_)));
    }
}
