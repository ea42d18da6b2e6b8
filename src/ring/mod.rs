//! (ring)
