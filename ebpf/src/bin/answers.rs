//! The programs that a pod's own interfaces need: one looks at who answers in the pod's name, one at what the
//! pod opens.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod programs {
    #![expect(unsafe_code, reason = "program symbols are exported by name")]

    use aya_ebpf::{macros::classifier, programs::TcContext};
    use ebpf::hook;

    /// The pod's number, set by the loader.
    #[unsafe(no_mangle)]
    static POD: u32 = 0;

    #[classifier]
    fn tcx_answers(ctx: TcContext) -> i32 {
        // SAFETY: read-only data that the loader fills before the program is loaded; a volatile read
        // keeps the compiler from using the initial value.
        let pod = unsafe { (&raw const POD).read_volatile() };
        hook::answers::leaving(&ctx, pod)
    }

    #[classifier]
    fn tcx_hold(ctx: TcContext) -> i32 {
        // SAFETY: as above.
        let pod = unsafe { (&raw const POD).read_volatile() };
        hook::hold::opening(&ctx, pod)
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
