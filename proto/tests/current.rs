//! The checked-in code is what the .proto files generate. Without this a changed .proto would be
//! documentation only.

use std::fs;
use std::path::Path;

const FILES: [&str; 3] = [
    "forerun/v1/words.proto",
    "forerun/v1/fleet.proto",
    "forerun/v1/node.proto",
];

#[test]
fn generated_code_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let descriptors = protox::compile(FILES, [root]).unwrap();
    let out = tempfile::tempdir().unwrap();
    tonic_prost_build::configure()
        .out_dir(out.path())
        .compile_fds(descriptors)
        .unwrap();
    let fresh = fs::read_to_string(out.path().join("forerun.v1.rs")).unwrap();
    let checked_in = root.join("src/forerun.v1.rs");
    if std::env::var_os("UPDATE_PROTO").is_some() {
        fs::write(&checked_in, &fresh).unwrap();
    }
    let now = fs::read_to_string(&checked_in).unwrap_or_default();
    assert!(
        now == fresh,
        "proto/src/forerun.v1.rs is stale: run UPDATE_PROTO=1 cargo test -p forerun-proto"
    );
}
