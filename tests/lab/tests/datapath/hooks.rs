//! Whose programs are where ours are.

#![expect(unsafe_code, reason = "bpf(2) has no safe wrapper for this")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use lab::Lab;

use crate::support::{APPLIES, changing_world};

/// `keelson check` shows it of a running mesh, and the probe before there is one.
#[test]
fn programs_of_others_are_shown_in_the_order_in_which_they_run() -> Result<()> {
    let lab = changing_world()?;
    let root = lab::cgroup2_root()?;
    let ours = [("connect4_captur".to_owned(), true)];
    let before = connect4(&lab, &root)?;
    ensure!(before.ends_with(&ours), "{before:?}");
    let rival = Rival::attach(&root)?;
    testkit::eventually("the rival is shown behind ours", APPLIES, || {
        let mut expected = before.clone();
        expected.push(("rival".to_owned(), false));
        let now = connect4(&lab, &root)?;
        ensure!(now == expected, "{now:?}");
        Ok(())
    })?;
    drop(rival);
    let after = connect4(&lab, &root)?;
    ensure!(after == before, "{after:?}");
    Ok(())
}

/// The programs at connect of IPv4, by name and whether they are ours.
fn connect4(lab: &Lab, root: &Path) -> Result<Vec<(String, bool)>> {
    let hooks = lab.agent_json("n1", "/hooks")?;
    let at = format!("connect4 of {}", root.display());
    let all = hooks.as_array().context("a list")?;
    let hook = all.iter().find(|hook| hook["at"] == *at);
    let programs = hook.with_context(|| hooks.to_string())?["programs"].as_array();
    let programs = programs.context("programs")?.iter().map(|program| {
        let name = program["name"].as_str().context("a name")?.to_owned();
        Ok((name, program["ours"].as_bool().context("whose")?))
    });
    programs.collect()
}

/// A program that lets everything pass, attached while this lives.
struct Rival {
    cgroup: File,
    program: OwnedFd,
}

impl Rival {
    fn attach(root: &Path) -> Result<Self> {
        let cgroup = File::open(root)?;
        // r0 = 1; exit.
        let code: [u64; 2] = [0x0000_0001_0000_00b7, 0x95];
        let license = c"GPL";
        let mut name = [0; 16];
        name[..5].copy_from_slice(b"rival");
        let load = Load {
            kind: CGROUP_SOCK_ADDR,
            count: 2,
            code: code.as_ptr() as u64,
            license: license.as_ptr() as u64,
            log: [0; 4],
            version_and_flags: [0; 2],
            name,
            interface: 0,
            attach_type: CONNECT4,
        };
        let fd = bpf(PROG_LOAD, &load).context("loading a program")?;
        // SAFETY: the call above has just made this descriptor, and nobody else knows it.
        let program = unsafe { OwnedFd::from_raw_fd(fd) };
        let rival = Self { cgroup, program };
        bpf(PROG_ATTACH, &rival.place()).context("attaching it")?;
        Ok(rival)
    }

    fn place(&self) -> Attach {
        Attach {
            target: self.cgroup.as_raw_fd().cast_unsigned(),
            program: self.program.as_raw_fd().cast_unsigned(),
            kind: CONNECT4,
            flags: ALLOW_MULTI,
        }
    }
}

impl Drop for Rival {
    fn drop(&mut self) {
        let place = Attach {
            flags: 0,
            ..self.place()
        };
        if let Err(error) = bpf(PROG_DETACH, &place) {
            tracing::error!(%error, "the rival stays attached");
        }
    }
}

/// `union bpf_attr` for `BPF_PROG_LOAD`, include/uapi/linux/bpf.h.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    code: u64,
    license: u64,
    /// Level and size of the verifier's log, and its address.
    log: [u32; 4],
    version_and_flags: [u32; 2],
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

/// The same for `BPF_PROG_ATTACH` and `BPF_PROG_DETACH`.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<i32> {
    let size = size_of::<T>();
    let attributes = std::ptr::from_ref(attributes);
    // SAFETY: the attributes are live for the call, of the size given, and laid out as `union bpf_attr` has them for this
    // command; the pointers in them are to live buffers.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(answer).map_err(io::Error::other)
}

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_DETACH: libc::c_int = 9;
const CGROUP_SOCK_ADDR: u32 = 18;
const CONNECT4: u32 = 10;
const ALLOW_MULTI: u32 = 2;
