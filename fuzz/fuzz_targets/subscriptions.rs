//! What an agent, or whoever says that it is one, asks of the controller.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    controller::fuzzing::subscriptions(fuzz::messages(data));
});
