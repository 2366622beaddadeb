//! A `forerun serve` process for a test: started on a socket of its own, stopped when dropped, and
//! its log shown when the test fails.
#![allow(
    dead_code,
    reason = "each test file is a crate of its own and uses a part of this"
)]
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking and speaks to the person who runs it"
)]

pub mod mount;
pub mod raw;

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A server is up in milliseconds; this is for a machine that is busy with everything else.
const START: Duration = Duration::from_secs(20);
/// From SIGTERM to the end of the process, with a flush of everything written.
const STOP: Duration = Duration::from_secs(20);

/// The program under test: the one that cargo built for this test, or `FORERUN` in the environment.
pub fn forerun() -> PathBuf {
    std::env::var_os("FORERUN")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_forerun")), Into::into)
}

/// False, with the reason printed, when one of `programs` is not installed.
pub fn have(programs: &[&str]) -> bool {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let missing: Vec<&&str> = programs
        .iter()
        .filter(|program| {
            !path
                .split(':')
                .any(|folder| Path::new(folder).join(program).is_file())
        })
        .collect();
    if !missing.is_empty() {
        eprintln!("skipped: {missing:?} not installed (scripts/test installs it)");
    }
    missing.is_empty()
}

/// False, with the reason printed, when this is not root: mounts and loop devices need it.
pub fn have_root() -> bool {
    let root = std::fs::metadata("/proc/self").is_ok_and(|m| {
        use std::os::unix::fs::MetadataExt;
        m.uid() == 0
    });
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

/// Runs a client with the system's own programs first: a Python from elsewhere lacks Debian's libnbd.
pub fn client<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> Output {
    let path = format!(
        "/usr/bin:/bin:/usr/sbin:/sbin:{}",
        std::env::var("PATH").unwrap_or_default()
    );
    Command::new(program)
        .args(arguments)
        .env("PATH", path)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}"))
}

/// Runs a client that must succeed; returns what it printed.
pub fn succeeds<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> String {
    let output = client(program, arguments);
    let shown: Vec<_> = arguments.iter().map(|a| a.as_ref().to_owned()).collect();
    assert!(
        output.status.success(),
        "{program} {shown:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// `forerun serve` on a unix socket.
pub struct Serving {
    child: Child,
    log: PathBuf,
    socket: PathBuf,
    /// Holds socket and log; the image is the caller's.
    _folder: tempfile::TempDir,
}

impl Serving {
    /// Serves `image` with further options, such as `["--cache", "writeback"]`.
    pub fn start(image: &Path, options: &[&str]) -> Serving {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("nbd.sock");
        Serving::start_in(folder, image, &socket, options)
    }

    /// The same on a socket of the caller's choice.
    pub fn start_at(image: &Path, socket: &Path, options: &[&str]) -> Serving {
        Serving::start_in(tempfile::tempdir().unwrap(), image, socket, options)
    }

    fn start_in(
        folder: tempfile::TempDir,
        image: &Path,
        socket: &Path,
        options: &[&str],
    ) -> Serving {
        let log = folder.path().join("log");
        let child = Command::new(forerun())
            .arg("serve")
            .arg(image)
            .arg("--socket")
            .arg(socket)
            .args(options)
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(&log).unwrap())
            .stderr(std::fs::File::options().append(true).open(&log).unwrap())
            .spawn()
            .unwrap();
        let mut serving = Serving {
            child,
            log,
            socket: socket.to_owned(),
            _folder: folder,
        };
        let began = Instant::now();
        while UnixStream::connect(&serving.socket).is_err() {
            let ended = serving.child.try_wait().unwrap();
            assert!(
                ended.is_none() && began.elapsed() < START,
                "does not serve ({ended:?}):\n{}",
                serving.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        serving
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub fn uri(&self) -> String {
        self.uri_of("")
    }

    pub fn uri_of(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }

    pub fn log(&self) -> String {
        let mut text = String::new();
        std::fs::File::open(&self.log)
            .and_then(|mut f| f.read_to_string(&mut text))
            .unwrap();
        text
    }

    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGTERM, and the process must end well: what was acknowledged is then in the image.
    pub fn stop(mut self) {
        self.terminate();
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert!(status.success(), "ended with {status}:\n{}", self.log());
                return;
            }
            assert!(
                began.elapsed() < STOP,
                "still runs {STOP:?} after SIGTERM:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn terminate(&self) {
        let _ = Command::new("kill")
            .arg(self.child.id().to_string())
            .status();
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if self.child.try_wait().ok().flatten().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- log of the server\n{}---", self.log());
        }
    }
}

/// A sparse raw image of so many MiB in a folder of its own.
pub struct Image {
    pub path: PathBuf,
    pub folder: tempfile::TempDir,
}

impl Image {
    pub fn sparse(mib: u64) -> Image {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        std::fs::File::create(&path)
            .unwrap()
            .set_len(mib << 20)
            .unwrap();
        Image { path, folder }
    }

    /// Random data, zeroes and holes in runs of several sizes: the same for the same seed.
    pub fn patterned(mib: u64, seed: u64) -> Image {
        use std::io::{Seek, SeekFrom, Write};
        let image = Image::sparse(mib);
        let mut file = std::fs::File::options()
            .write(true)
            .open(&image.path)
            .unwrap();
        let mut random = Random(seed);
        let mut at = 0;
        while at < mib << 20 {
            let run = (1 + random.next() % 64) * 4096;
            let run = run.min((mib << 20) - at);
            file.seek(SeekFrom::Start(at)).unwrap();
            match random.next() % 3 {
                0 => {}
                1 => file
                    .write_all(&vec![0; usize::try_from(run).unwrap()])
                    .unwrap(),
                _ => {
                    let data: Vec<u8> = (0..run / 8)
                        .flat_map(|_| random.next().to_le_bytes())
                        .collect();
                    file.write_all(&data).unwrap();
                }
            }
            at += run;
        }
        file.sync_all().unwrap();
        image
    }
}

/// A small deterministic generator (splitmix64), so that a failing run can be repeated.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
