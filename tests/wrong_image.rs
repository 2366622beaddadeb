//! An image that is not the one on record is refused: another file in its place, an older copy restored
//! over it, one that is shorter or longer. What the metadata says (who has what, what changed) is of
//! the image that was there; to serve or replicate another by it would lose changes in silence.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking and speaks to the person who runs it"
)]

mod fleet_processes;
mod serving;

use fleet_processes::{Fleet, Who};
use node::client::Client;
use proto::v1::{ReplicaState, VolumeRole};
use serving::{Image, Serving, forerun};
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// What `forerun serve --state` says when it must not serve.
fn refused(image: &Image, more: &[&str]) -> String {
    let out = Command::new("timeout")
        .arg("20")
        .arg(forerun())
        .arg("serve")
        .arg(&image.path)
        .args(options(image))
        .args([
            "--socket",
            image.folder.path().join("sock").to_str().unwrap(),
        ])
        .args(more)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said.contains(image.path.to_str().unwrap()), "{said}");
    said
}

fn options(image: &Image) -> [String; 4] {
    let state = image.folder.path().join("state");
    let state = state.to_str().unwrap();
    ["--state", state, "--checkpoint", "monday"].map(str::to_owned)
}

fn serve(image: &Image, more: &[&str]) -> Serving {
    let options = options(image);
    let mut options: Vec<&str> = options.iter().map(String::as_str).collect();
    options.extend_from_slice(more);
    Serving::start(&image.path, &options)
}

fn client(uri: &str) -> Client {
    Client::connect(&uri.parse().unwrap(), &[], Duration::from_secs(20)).unwrap()
}

fn write(uri: &str, offset: u64, byte: u8) {
    let mut client = client(uri);
    client.write(offset, &[byte; 4096], true).unwrap();
    client.close().unwrap();
}

/// Puts a copy of the file in its place: the same content and size, another file.
fn exchange(path: &Path) {
    let copy = path.with_extension("copy");
    std::fs::copy(path, &copy).unwrap();
    std::fs::rename(copy, path).unwrap();
}

#[test]
fn serve_refuses_another_file_in_the_images_place_until_it_is_told_to_adopt_it() {
    let image = Image::patterned(8, 1);
    let serving = serve(&image, &[]);
    write(&serving.uri(), MIB, 7);
    drop(serving); // SIGKILL: of a crashed server's image only the file itself can be told
    exchange(&image.path);
    let said = refused(&image, &[]);
    assert!(said.contains("another file"), "{said}");
    assert!(said.contains("--adopt-image"), "{said}");

    let adopting = serve(&image, &["--adopt-image"]);
    write(&adopting.uri(), MIB, 8);
    assert!(adopting.log().contains("exchanged"), "{}", adopting.log());
    adopting.stop();
    serve(&image, &[]).stop();
}

/// An older copy written over the image keeps its inode. A closed image is known by the time of its last
/// change as well.
#[test]
fn serve_refuses_an_image_that_something_else_wrote_to_while_it_was_closed() {
    let image = Image::patterned(8, 2);
    let older = std::fs::read(&image.path).unwrap();
    let serving = serve(&image, &[]);
    write(&serving.uri(), MIB, 7);
    serving.stop();
    serve(&image, &[]).stop();
    std::fs::write(&image.path, older).unwrap();
    let said = refused(&image, &[]);
    assert!(said.contains("something else"), "{said}");
    serve(&image, &["--adopt-image"]).stop();
    // Other names and modes of the same image are no business of ours.
    let link = image.folder.path().join("link");
    std::fs::hard_link(&image.path, link).unwrap();
    serve(&image, &[]).stop();
}

#[test]
fn serve_refuses_an_image_that_became_shorter_or_longer() {
    for size in [4 * MIB, 16 * MIB] {
        let image = Image::patterned(8, 3);
        serve(&image, &[]).stop();
        let file = File::options().write(true).open(&image.path).unwrap();
        file.set_len(size).unwrap();
        let said = refused(&image, &["--adopt-image"]);
        assert!(said.contains(&size.to_string()), "{said}");
    }
}

/// A node with two volumes: `v`, replicated to b, and `w`.
fn fleet() -> Fleet {
    let fleet = Fleet::start();
    for name in ["v", "w"] {
        fleet.run(&["volume", "create", name, "--size", "8M", "--node", "a"]);
        put(&fleet, "a", name, 0, 5);
    }
    let bound = "bounded=500ms";
    fleet.run(&["replica", "add", "v", "--to", "b", "--consistency", bound]);
    fleet
}

fn put(fleet: &Fleet, node: &str, volume: &str, offset: u64, byte: u8) {
    let uri = fleet.uri(node, volume);
    let mut client = Client::connect(&uri, &[], Duration::from_secs(20)).unwrap();
    client.write(offset, &[byte; 4096], true).unwrap();
    client.close().unwrap();
}

fn get(fleet: &Fleet, node: &str, volume: &str, offset: u64) -> u8 {
    let uri = fleet.uri(node, volume);
    let mut client = Client::connect(&uri, &[], Duration::from_secs(20)).unwrap();
    let mut data = [0; 4096];
    client.read(offset, &mut data).unwrap();
    client.close().unwrap();
    data[0]
}

/// The node refuses volume `v` and says these words; `w` is served.
fn assert_refused(fleet: &Fleet, who: Who, words: &[&str]) {
    let report = fleet.until("the node reports", || fleet.report(who, "v"));
    assert_eq!(report.role(), VolumeRole::Failed, "{report:?}");
    for word in words {
        assert!(report.trouble.contains(word), "{}", report.trouble);
    }
    if who == Who::Source {
        assert_eq!(get(fleet, "a", "w", 0), 5);
    }
}

fn images_agree(fleet: &Fleet) -> Option<()> {
    let [a, b] = ["a", "b"].map(|n| std::fs::read(fleet.volume(n, "v").join("image")).unwrap());
    (a == b).then_some(())
}

/// Another file in the place of an owner's image and of a replica's. The owner's node refuses it and
/// serves its other volume; told to adopt it, it compares its replica with all of it.
#[test]
fn a_node_refuses_an_exchanged_image_and_compares_one_that_it_adopts() {
    let mut fleet = fleet();
    let image = fleet.volume("a", "v").join("image");
    fleet.kill(Who::Source);
    exchange(&image);
    // And it is another content, which no map knows of.
    let mut content = std::fs::read(&image).unwrap();
    content[3 << 20] = 77;
    std::fs::write(&image, content).unwrap();
    fleet.restart(Who::Source);
    let path = image.to_str().unwrap();
    assert_refused(
        &fleet,
        Who::Source,
        &["another file", path, "--adopt-image v"],
    );

    fleet.kill(Who::Source);
    fleet.restart_with(Who::Source, &["--adopt-image", "v"]);
    put(&fleet, "a", "v", MIB, 9);
    fleet.until("the replica has all of it", || images_agree(&fleet));
    fleet.kill(Who::Source);
    fleet.restart(Who::Source);
    assert_eq!(get(&fleet, "a", "v", 3 * MIB), 77);

    let image = fleet.volume("b", "v").join("image");
    fleet.kill(Who::Target);
    exchange(&image);
    let mut content = std::fs::read(&image).unwrap();
    content[5 << 20] = 66;
    std::fs::write(&image, content).unwrap();
    fleet.restart(Who::Target);
    assert_refused(&fleet, Who::Target, &["another file", "--adopt-image v"]);
    fleet.kill(Who::Target);
    fleet.restart_with(Who::Target, &["--adopt-image", "v"]);
    put(&fleet, "a", "v", MIB, 10);
    fleet.until("the replica is whole again", || {
        let replica = fleet.replica()?;
        (replica.state() == ReplicaState::Consistent).then_some(())?;
        images_agree(&fleet)
    });
}

#[test]
fn a_node_refuses_an_older_copy_and_a_resized_image() {
    let mut fleet = fleet();
    let image = fleet.volume("a", "v").join("image");
    let older = std::fs::read(&image).unwrap();
    put(&fleet, "a", "v", MIB, 9);
    fleet.terminate(Who::Source);
    std::fs::write(&image, &older).unwrap();
    fleet.restart(Who::Source);
    assert_refused(&fleet, Who::Source, &["something else", "--adopt-image v"]);
    fleet.terminate(Who::Source);
    for size in [4 * MIB, 16 * MIB] {
        let file = File::options().write(true).open(&image).unwrap();
        file.set_len(size).unwrap();
        fleet.restart(Who::Source);
        assert_refused(&fleet, Who::Source, &["put the right image back"]);
        fleet.kill(Who::Source);
    }
}

/// The file under a running node is exchanged: what is served stays what it was, and the node says that
/// it has no name any more.
#[test]
fn a_running_node_says_that_its_image_was_taken_away() {
    let mut fleet = fleet();
    exchange(&fleet.volume("a", "v").join("image"));
    put(&fleet, "a", "v", MIB, 9);
    let report = fleet.report(Who::Source, "v").unwrap();
    assert_eq!(report.role(), VolumeRole::Owner);
    assert!(
        report.trouble.contains("another file"),
        "{}",
        report.trouble
    );
    assert_eq!(fleet.report(Who::Source, "w").unwrap().trouble, "");
    fleet.terminate(Who::Source);
    fleet.restart(Who::Source);
    assert_refused(&fleet, Who::Source, &["another file"]);
}

/// A volume's directory under another name is another volume's, or a second one with the same identity:
/// two copies of one volume on a node would both speak for it.
#[test]
fn a_renamed_or_copied_directory_is_refused() {
    let mut fleet = fleet();
    let (v, x) = (fleet.volume("a", "v"), fleet.volume("a", "x"));
    fleet.kill(Who::Source);
    std::fs::rename(&v, &x).unwrap();
    fleet.restart(Who::Source);
    let trouble = |fleet: &Fleet| {
        let report = fleet.until("the node reports", || fleet.report(Who::Source, "x"));
        assert_eq!(report.role(), VolumeRole::Failed);
        report.trouble
    };
    let said = trouble(&fleet);
    assert!(said.contains("Name it v again"), "{said}");
    assert_eq!(get(&fleet, "a", "w", 0), 5);

    fleet.kill(Who::Source);
    std::fs::rename(&x, &v).unwrap();
    std::fs::create_dir(&x).unwrap();
    for file in std::fs::read_dir(&v).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), x.join(file.file_name())).unwrap();
    }
    fleet.restart(Who::Source);
    let said = trouble(&fleet);
    assert!(said.contains("if it is a copy"), "{said}");
    for name in ["v", "w"] {
        assert_eq!(get(&fleet, "a", name, 0), 5);
    }
}
