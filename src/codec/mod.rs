//! Bounded decoding of untrusted bytes. No I/O, no panics.
