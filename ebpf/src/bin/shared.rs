//! The programs at interfaces that all pods share: the guard on the node's end, the inbound half of the wall on the
//! pod's own, and what holds SYNs on its `lo`. Entries in `pod.rs` call them.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod programs {
    #![expect(unsafe_code, reason = "program symbols are exported by name")]

    use aya_ebpf::{macros::classifier, programs::TcContext};
    use ebpf::hook::{self, shared::entered};

    #[classifier]
    fn shared_guard(ctx: TcContext) -> i32 {
        hook::veth::guard(&ctx, entered(&ctx))
    }

    #[classifier]
    fn shared_wall(ctx: TcContext) -> i32 {
        hook::wall::arriving(&ctx, entered(&ctx).pod)
    }

    #[classifier]
    fn shared_hold(ctx: TcContext) -> i32 {
        hook::hold::opening(&ctx, entered(&ctx).pod)
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
