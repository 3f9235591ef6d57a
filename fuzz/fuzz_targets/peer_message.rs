#![no_main]

#[path = "../../kvnode/tests/fuzzed/mod.rs"]
mod fuzzed;

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzzed::peer_message(input));
