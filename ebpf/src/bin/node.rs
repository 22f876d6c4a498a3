//! Programs that a node needs once: `connect4`, `connect6`, `getpeername4`, `getpeername6`,
//! `setsockopt`, the socket tracker and the probe noter.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod programs {
    #![expect(unsafe_code, reason = "program symbols are exported by name")]

    use aya_ebpf::{
        macros::{cgroup_sock_addr, cgroup_sockopt, sock_ops},
        programs::{SockAddrContext, SockOpsContext, SockoptContext},
    };
    use ebpf::hook;

    #[cgroup_sock_addr(connect4)]
    fn connect4_capture(ctx: SockAddrContext) -> i32 {
        hook::connect::connect4(ctx.sock_addr)
    }

    #[cgroup_sock_addr(connect6)]
    fn connect6_capture(ctx: SockAddrContext) -> i32 {
        hook::connect::connect6(ctx.sock_addr)
    }

    #[cgroup_sock_addr(getpeername4)]
    fn getpeername4_dialled(ctx: SockAddrContext) -> i32 {
        hook::connect::getpeername4(ctx.sock_addr)
    }

    #[cgroup_sock_addr(getpeername6)]
    fn getpeername6_dialled(ctx: SockAddrContext) -> i32 {
        hook::connect::getpeername6(ctx.sock_addr)
    }

    #[cgroup_sockopt(setsockopt)]
    fn setsockopt_path(ctx: SockoptContext) -> i32 {
        hook::option::set(ctx.sockopt)
    }

    #[sock_ops]
    fn sock_ops_track(ctx: SockOpsContext) -> u32 {
        hook::socket_ops::track(&ctx)
    }

    #[sock_ops]
    fn sock_ops_probe(ctx: SockOpsContext) -> u32 {
        hook::probe::note(&ctx)
    }

    /// A program that could panic loops here, and the verifier refuses to load it.
    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }

    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
