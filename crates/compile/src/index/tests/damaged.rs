//! Damaged manifests: what is left of them, or refuses in place of them, is put into effect without a panic.

use super::*;

const WHOLE: &str = include_str!("../../../../../fuzz/corpus/manifests/mesh.yaml");

proptest::proptest! {
    #[test]
    fn damaged_manifests_are_put_into_effect_as_far_as_they_can_be(
        cuts in proptest::collection::vec((0..WHOLE.len(), 0..6_usize, ".{0,3}"), 1..8)
    ) {
        let mut text = WHOLE.to_owned();
        for (at, length, put) in cuts {
            let at = at.min(text.len());
            let end = (at + length).min(text.len());
            if text.is_char_boundary(at) && text.is_char_boundary(end) {
                text.replace_range(at..end, &put);
            }
        }
        let mut index = Index::new(MeshConfig::default());
        for claim in read_file(&"f.yaml".into(), &text, "istio-system").claims {
            if let Claim::Good(upsert) | Claim::Broken { fallback: Some(upsert), .. } = claim {
                index.apply(&upsert);
            }
        }
        index.flush();
    }
}
