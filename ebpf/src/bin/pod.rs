//! The programs that each pod has of its own: `sk_lookup` in its network namespace, what looks at who answers in its
//! name, and at its interfaces the entries of the programs that all pods share.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod programs {
    #![expect(unsafe_code, reason = "program symbols are exported by name")]

    use abi::Shared;
    use aya_ebpf::{
        macros::{classifier, sk_lookup},
        programs::{SkLookupContext, TcContext},
    };
    use ebpf::{
        hook::{
            self,
            shared::{Entered, enter},
        },
        source::Own,
    };

    /// The pod's number, set by the loader.
    #[unsafe(no_mangle)]
    static POD: u32 = 0;
    /// Its IPv4 address in network order, set by the loader; zero if it has none.
    #[unsafe(no_mangle)]
    static OWN_V4: u32 = 0;
    /// Its IPv6 address, likewise.
    #[unsafe(no_mangle)]
    static OWN_V6: [u32; 4] = [0; 4];

    #[inline(always)]
    fn pod() -> u32 {
        // SAFETY: read-only data that the loader fills before the program is loaded; a volatile read
        // keeps the compiler from using the initial value.
        unsafe { (&raw const POD).read_volatile() }
    }

    #[sk_lookup]
    fn sk_lookup_pod(ctx: SkLookupContext) -> u32 {
        hook::lookup::lookup(&ctx, pod())
    }

    #[classifier]
    fn tcx_answers(ctx: TcContext) -> i32 {
        hook::answers::leaving(&ctx, pod())
    }

    #[classifier]
    fn tcx_source_guard(ctx: TcContext) -> i32 {
        // SAFETY: as above.
        let own = unsafe {
            Own {
                v4: (&raw const OWN_V4).read_volatile(),
                v6: (&raw const OWN_V6).read_volatile(),
            }
        };
        let own_source = hook::veth::has_source(&ctx, &own);
        let pod = pod();
        enter(&ctx, Entered { pod, own_source }, Shared::Guard)
    }

    #[classifier]
    fn tcx_inbound_wall(ctx: TcContext) -> i32 {
        enter_as(&ctx, Shared::Wall)
    }

    #[classifier]
    fn tcx_hold(ctx: TcContext) -> i32 {
        if !hook::hold::concerns(&ctx) {
            return hook::veth::NEXT;
        }
        enter_as(&ctx, Shared::Hold)
    }

    #[inline(always)]
    fn enter_as(ctx: &TcContext, shared: Shared) -> i32 {
        let entered = Entered {
            pod: pod(),
            own_source: false,
        };
        enter(ctx, entered, shared)
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
