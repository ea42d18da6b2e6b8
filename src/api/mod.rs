//! (api)
pub mod decode;
