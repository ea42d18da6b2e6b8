#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| timberline_fuzz::push_body(input));
