//! The programs that each pod's interface needs: the guard on the node's end, the inbound half of the
//! wall on the pod's own.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod programs {
    #![expect(unsafe_code, reason = "program symbols are exported by name")]

    use aya_ebpf::{macros::classifier, programs::TcContext};
    use ebpf::{hook, source::Own};

    /// The pod's number, set by the loader.
    #[unsafe(no_mangle)]
    static POD: u32 = 0;
    /// Its IPv4 address in network order, set by the loader; zero if it has none.
    #[unsafe(no_mangle)]
    static OWN_V4: u32 = 0;
    /// Its IPv6 address, likewise.
    #[unsafe(no_mangle)]
    static OWN_V6: [u32; 4] = [0; 4];

    #[classifier]
    fn tcx_source_guard(ctx: TcContext) -> i32 {
        // SAFETY: read-only data that the loader fills before the program is loaded; a volatile read
        // keeps the compiler from using the initial value.
        let pod = unsafe { (&raw const POD).read_volatile() };
        // SAFETY: as above.
        let own = unsafe {
            Own {
                v4: (&raw const OWN_V4).read_volatile(),
                v6: (&raw const OWN_V6).read_volatile(),
            }
        };
        hook::veth::guard(&ctx, pod, &own)
    }

    #[classifier]
    fn tcx_inbound_wall(ctx: TcContext) -> i32 {
        // SAFETY: as above.
        let pod = unsafe { (&raw const POD).read_volatile() };
        hook::wall::arriving(&ctx, pod)
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
