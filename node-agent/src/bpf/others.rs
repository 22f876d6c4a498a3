//! Programs that somebody has loaded for the hooks that the kernel half uses too.

use std::collections::BTreeMap;

use aya::programs::loaded_programs;

/// Names of programs by what they hook, all that the kernel has now. A program without a name is called `?`.
pub fn others() -> BTreeMap<&'static str, Vec<String>> {
    let mut all: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
    // One that goes meanwhile is not there.
    for program in loaded_programs().flatten() {
        let kind = program.program_type() as u32;
        let Some((_, hook)) = HOOKS.iter().find(|(known, _)| *known == kind) else {
            continue;
        };
        let name = program.name_as_str().filter(|name| !name.is_empty());
        let name = name.unwrap_or("?").to_owned();
        let names = all.entry(hook).or_default();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    all
}

/// `enum bpf_prog_type` of include/uapi/linux/bpf.h, as far as the kernel half has such programs.
const HOOKS: [(u32, &str); 5] = [
    (3, "tc"),
    (13, "sock_ops"),
    (18, "connect"),
    (25, "setsockopt"),
    (30, "sk_lookup"),
];
