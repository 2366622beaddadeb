//! The databases: a workload that says which transactions were acknowledged, and an inspection of what
//! a crash left of it.
//!
//! Transaction n inserts row n, whose bytes follow from n, and moves a total in another table. So in a
//! sound database there are rows 1 to k with their bytes, and the total is k: none is missing between,
//! none is there by half.

use crate::postgres;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

const SQLITE_RUN: &str = r#"
import hashlib, os, sqlite3, sys
path, mode, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
db = sqlite3.connect(path, isolation_level=None)
db.execute(f"pragma journal_mode={mode}")
# A deleted rollback journal can come back after a power cut unless its folder was synced: "extra".
db.execute("pragma synchronous=" + ("full" if mode == "wal" else "extra"))
db.execute("pragma wal_autocheckpoint=50")
db.execute("create table entries(number integer primary key, content blob)")
db.execute("create table total(number integer)")
db.execute("insert into total values(0)")
os.system(f"sync -f {path}")
print("ack 0", flush=True)
for n in range(1, count + 1):
    content = hashlib.shake_128(str(n).encode()).digest(200 + n * 397 % 5000)
    db.execute("begin immediate")
    db.execute("insert into entries values(?, ?)", (n, content))
    db.execute("update total set number = ?", (n,))
    db.execute("commit")
    print("ack", n, flush=True)
os._exit(0)  # no farewell: a power cut gives no time for one
"#;

const SQLITE_INSPECT: &str = r#"
import hashlib, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
verdict = db.execute("pragma integrity_check").fetchone()[0]
assert verdict == "ok", verdict
total = db.execute("select number from total").fetchone()[0]
rows = db.execute("select number, content from entries order by number").fetchall()
assert [n for n, _ in rows] == list(range(1, total + 1)), f"total {total}, rows {[n for n, _ in rows]}"
for n, content in rows:
    assert content == hashlib.shake_128(str(n).encode()).digest(200 + n * 397 % 5000), f"row {n}"
print(total)
"#;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Database {
    /// SQLite with a write-ahead log.
    SqliteWal,
    /// SQLite with a rollback journal.
    SqliteJournal,
    /// PostgreSQL.
    Postgres,
}

impl Database {
    /// Transactions on a database in `tree`, each acknowledged on stdout.
    pub fn workload(self, tree: &Path, transactions: u64) -> Command {
        let folder = tree.join("db");
        std::fs::create_dir(&folder).unwrap();
        let mode = match self {
            Database::SqliteWal => "wal",
            Database::SqliteJournal => "delete",
            Database::Postgres => {
                let sockets = tree.with_file_name("sockets");
                return postgres::workload(&folder, &sockets, transactions);
            }
        };
        let mut command = Command::new("python3");
        command.args(["-c", SQLITE_RUN]);
        command.arg(folder.join("data")).arg(mode);
        command.arg(transactions.to_string());
        command
    }

    /// The last transaction that a database has, if it is sound.
    pub fn inspect(self, folder: &Path) -> Result<u64, String> {
        if self == Database::Postgres {
            return postgres::inspect(folder);
        }
        let mut command = Command::new("python3");
        command
            .args(["-c", SQLITE_INSPECT])
            .arg(folder.join("data"));
        let said = run(&mut command)?;
        said.trim().parse().map_err(|e| format!("{said}: {e}"))
    }
}

/// The last transaction in an image of the file system: the file system is repaired by its journal,
/// must then be clean, and so must the database be in it.
pub fn inspect_image(image: &Path, database: Database) -> Result<u64, String> {
    let shown = image.to_str().expect("a path of ours");
    let replayed = e2fsck(&["-p", shown]);
    if replayed.status.code().is_none_or(|code| code > 1) {
        return Err(format!("e2fsck -p: {}", text(&replayed)));
    }
    let checked = e2fsck(&["-fn", shown]);
    if !checked.status.success() {
        return Err(format!("e2fsck -fn: {}", text(&checked)));
    }
    let files = tempfile::tempdir().map_err(|e| e.to_string())?;
    // PostgreSQL must find its way in as another user.
    std::fs::set_permissions(files.path(), Permissions::from_mode(0o755))
        .map_err(|e| e.to_string())?;
    let dump = format!("rdump /db {}", files.path().display());
    run(Command::new("debugfs")
        .env("PATH", PATH)
        .args(["-R", &dump, shown]))?;
    database.inspect(&files.path().join("db"))
}

const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

fn e2fsck(arguments: &[&str]) -> Output {
    let mut command = Command::new("e2fsck");
    command.args(arguments).env("PATH", PATH).env("LC_ALL", "C");
    command.output().unwrap_or_else(|e| panic!("e2fsck: {e}"))
}

fn run(command: &mut Command) -> Result<String, String> {
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    if !output.status.success() {
        return Err(text(&output));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn text(output: &Output) -> String {
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&said).into_owned()
}
