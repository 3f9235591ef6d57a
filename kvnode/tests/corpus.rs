//! The seeds of the fuzz targets, replayed with the stable toolchain.

mod fuzzed;

use std::path::Path;

fn replay(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut count = 0;
    for entry in std::fs::read_dir(&folder).expect("the corpus is in the tree") {
        let path = entry.expect("an entry").path();
        println!("{}", path.display());
        run(&std::fs::read(path).expect("a file"));
        count += 1;
    }
    assert!(count > 5, "{count} seeds of {target}");
}

#[test]
fn tokens() {
    replay("token", fuzzed::token);
}

#[test]
fn http_bodies() {
    replay("http_body", fuzzed::http_body);
}

#[test]
fn peer_messages() {
    replay("peer_message", fuzzed::peer_message);
}

#[test]
fn storage_recovery() {
    replay("storage_recovery", fuzzed::storage_recovery);
}
