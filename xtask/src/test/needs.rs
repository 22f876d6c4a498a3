//! What has to be there before the tests of a package can run: a host crate is tested without waiting for the kernel
//! half.

/// What the tests of a package need, the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Needs {
    /// Cargo alone.
    Cargo,
    /// What `cargo xtask setup` installs: the agent carries the kernel half, so it is compiled with it.
    KernelHalf,
    /// Root and all programs: the tests start agents and controllers, and load eBPF programs.
    Programs,
}

/// What these packages need together; no package means the whole workspace.
pub(super) fn of(packages: &[String]) -> Needs {
    let of_one = |package: &String| match package.as_str() {
        package if LAB.contains(&package) => Needs::Programs,
        package if AGENT.contains(&package) => Needs::KernelHalf,
        _ => Needs::Cargo,
    };
    packages.iter().map(of_one).max().unwrap_or(Needs::Programs)
}

/// Packages whose tests put up a lab.
const LAB: [&str; 3] = ["tests-lab", "lab", "bench"];
/// Packages whose build compiles the kernel half.
const AGENT: [&str; 1] = ["node-agent"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lint::metadata::Metadata;

    #[test]
    fn together_packages_need_what_the_most_demanding_of_them_needs() {
        let of =
            |packages: &[&str]| of(&packages.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(of(&["model", "controller"]), Needs::Cargo);
        assert_eq!(of(&["model", "node-agent"]), Needs::KernelHalf);
        assert_eq!(of(&["node-agent", "tests-lab"]), Needs::Programs);
        assert_eq!(of(&[]), Needs::Programs);
    }

    #[test]
    fn whoever_links_the_agent_is_listed() {
        let metadata = Metadata::read().expect("cargo tells of the workspace");
        for member in metadata.members() {
            let linked = Metadata::linked(member).expect("cargo tells what is linked");
            let is_listed = LAB.contains(&&*member.name) || AGENT.contains(&&*member.name);
            assert!(
                is_listed || !linked.contains("node-agent"),
                "{}",
                member.name
            );
        }
    }
}
