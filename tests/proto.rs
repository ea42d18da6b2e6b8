//! The checked-in code of `src/api/pb` is what the files in `proto/` generate.
//!
//! Nothing is generated in a build, so a build needs no protoc. After a change of a `.proto` file:
//! `UPDATE=1 cargo test --test proto`, and commit what it writes.

use std::path::{Path, PathBuf};

const PACKAGES: [&str; 2] = ["httpgrpc", "logproto"];

#[test]
fn generated_code_is_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = tempfile::tempdir().expect("a temporary directory");
    generate(&root.join("proto"), out.path());
    for package in PACKAGES {
        let fresh = read(&out.path().join(format!("{package}.rs")));
        let checked_in = root.join("src/api/pb").join(format!("{package}.rs"));
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&checked_in, &fresh).expect("writes the generated file");
            continue;
        }
        assert!(
            fresh == read(&checked_in),
            "{} is not what proto/{package}.proto generates; run `UPDATE=1 cargo test --test proto`",
            checked_in.display()
        );
    }
}

fn generate(proto: &Path, out: &Path) {
    let files: Vec<PathBuf> = PACKAGES.iter().map(|p| proto.join(format!("{p}.proto"))).collect();
    let descriptors = protox::compile(files, [proto]).expect("the .proto files compile");
    tonic_prost_build::configure()
        .bytes(".")
        .emit_rerun_if_changed(false)
        .out_dir(out)
        .compile_fds(descriptors)
        .expect("generates");
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
