//! What is attached to the hooks of the node that the kernel half uses, whose ever it is, in the order in which it runs.

#![expect(
    unsafe_code,
    reason = "aya asks for the programs of an interface only, and gives no cgroup's"
)]

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io,
    os::fd::AsRawFd,
    path::Path,
};

use admin_api::{Attached, Hook};
use aya::programs::loaded_programs;

/// The hooks of a cgroup and of the interfaces of this network namespace that have a program. Where several interfaces have
/// the same, one hook names them all by their number.
///
/// # Errors
/// When the cgroup cannot be opened. What the kernel does not know (tcx before 6.6) has no programs.
pub fn attached(cgroup: &Path) -> io::Result<Vec<Hook>> {
    let names = names();
    let file = File::open(cgroup)?;
    let target = u32::try_from(file.as_raw_fd()).map_err(io::Error::other)?;
    let mut hooks = Vec::new();
    for (hook, kind) in CGROUP_HOOKS {
        let programs = programs(query(target, kind, EFFECTIVE), &names);
        if !programs.is_empty() {
            hooks.push(Hook {
                at: format!("{hook} of {}", cgroup.display()),
                programs,
            });
        }
    }
    for (hook, kind) in TCX_HOOKS {
        let mut alike: BTreeMap<Vec<Attached>, Vec<String>> = BTreeMap::new();
        for (index, name) in interfaces()? {
            let programs = programs(query(index, kind, 0), &names);
            if !programs.is_empty() {
                alike.entry(programs).or_default().push(name);
            }
        }
        hooks.extend(alike.into_iter().map(|(programs, interfaces)| Hook {
            at: match interfaces.as_slice() {
                [only] => format!("{hook} of {only}"),
                several => format!("{hook} of {} interfaces", several.len()),
            },
            programs,
        }));
    }
    Ok(hooks)
}

/// The names of loaded programs by their number.
fn names() -> HashMap<u32, String> {
    // One that goes meanwhile is not there.
    let loaded = loaded_programs().flatten();
    let named = loaded.map(|program| {
        let name = program.name_as_str().unwrap_or_default().to_owned();
        (program.id(), name)
    });
    named.collect()
}

fn programs(ids: io::Result<Vec<u32>>, names: &HashMap<u32, String>) -> Vec<Attached> {
    let ids = ids.unwrap_or_default().into_iter();
    let programs = ids.map(|id| {
        let name = names.get(&id).filter(|name| !name.is_empty());
        let name = name.map_or("?", String::as_str);
        Attached {
            ours: is_ours(name),
            name: name.to_owned(),
        }
    });
    programs.collect()
}

/// By the names of `ebpf/src/bin`, of which the kernel keeps the beginning.
fn is_ours(name: &str) -> bool {
    let cut = |own: &&str| &own[..own.len().min(KEPT)] == name;
    OWN.iter().any(cut)
}

fn interfaces() -> io::Result<Vec<(u32, String)>> {
    let all = nix::net::if_::if_nameindex()?;
    let all = all.iter().map(|interface| {
        let name = interface.name().to_string_lossy().into_owned();
        (interface.index(), name)
    });
    Ok(all.collect())
}

/// The `query` member of `union bpf_attr`, include/uapi/linux/bpf.h, as far as it is needed.
#[repr(C)]
struct Query {
    /// A descriptor of a cgroup or the index of an interface.
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    padding: u32,
}

/// The numbers of the programs of one hook, as they run.
fn query(target: u32, attach_type: u32, query_flags: u32) -> io::Result<Vec<u32>> {
    let mut ids = vec![0_u32; MOST];
    let mut attr = Query {
        target,
        attach_type,
        query_flags,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr() as u64,
        count: u32::try_from(ids.len()).map_err(io::Error::other)?,
        padding: 0,
    };
    // SAFETY: `attr` and the numbers it points to outlive the call, their sizes are given, and the kernel writes no more
    // numbers than there is room for.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_QUERY,
            &raw mut attr,
            size_of::<Query>(),
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    ids.truncate(usize::try_from(attr.count).map_err(io::Error::other)?);
    Ok(ids)
}

const BPF_PROG_QUERY: libc::c_int = 16;
/// `BPF_F_QUERY_EFFECTIVE`: those of the cgroups above too, which run as well.
const EFFECTIVE: u32 = 1;
/// The kernel lets fewer be attached to a cgroup, or to one side of an interface.
const MOST: usize = 64;
/// Letters of a program's name that the kernel keeps (`BPF_OBJ_NAME_LEN` with its end).
const KEPT: usize = 15;
/// `enum bpf_attach_type`, include/uapi/linux/bpf.h.
const CGROUP_HOOKS: [(&str, u32); 6] = [
    ("sock_ops", 3),
    ("connect4", 10),
    ("connect6", 11),
    ("setsockopt", 22),
    ("getpeername4", 29),
    ("getpeername6", 30),
];
const TCX_HOOKS: [(&str, u32); 2] = [("tcx ingress", 46), ("tcx egress", 47)];
const OWN: [&str; 15] = [
    "connect4_capture",
    "connect6_capture",
    "getpeername4_dialled",
    "getpeername6_dialled",
    "setsockopt_path",
    "sock_ops_track",
    "sock_ops_probe",
    "sk_lookup_pod",
    "tcx_source_guard",
    "tcx_inbound_wall",
    "tcx_answers",
    "tcx_hold",
    "shared_guard",
    "shared_wall",
    "shared_hold",
];

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Every program of the kernel half is named here.
    #[test]
    fn our_programs_are_known_by_the_names_that_the_kernel_keeps() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ebpf/src/bin");
        let mut count = 0;
        for file in fs::read_dir(folder).unwrap() {
            let text = fs::read_to_string(file.unwrap().path()).unwrap();
            let names = text.lines().filter_map(|line| {
                let line = line.trim().strip_prefix("fn ")?;
                // What programs have in common borrows the context.
                let (name, kind) = line.split_once("(ctx: ")?;
                (!kind.starts_with('&')).then(|| name.to_owned())
            });
            for name in names {
                assert!(is_ours(&name[..name.len().min(KEPT)]), "{name}");
                count += 1;
            }
        }
        assert_eq!(count, OWN.len());
        assert!(!is_ours("cil_sock4_conne") && !is_ours("?") && !is_ours("tcx"));
    }
}
