//! PostgreSQL as Debian packages it. It refuses to run as root, so all of it runs as nobody.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const RUN: &str = r#"
set -euo pipefail
bin=$1 data=$2 sockets=$3 count=$4
cd /
as_nobody() { setpriv --reuid=nobody --regid=nogroup --clear-groups "$@"; }
mkdir "$sockets"
chown nobody "$data" "$sockets"
as_nobody "$bin/initdb" -D "$data" -U postgres -A trust --no-locale -E UTF8 --no-sync -k \
    --wal-segsize=1 >/dev/null
cat >>"$data/postgresql.conf" <<EOF
listen_addresses = ''
unix_socket_directories = '$sockets'
shared_buffers = 1MB
min_wal_size = 2MB
max_wal_size = 2MB
EOF
as_nobody "$bin/pg_ctl" -D "$data" -w -l "$sockets/log" start >/dev/null
trap 'as_nobody "$bin/pg_ctl" -D "$data" -m immediate stop >/dev/null' EXIT
# "ack n" when the server has answered the commit.
sql() { stdbuf -oL "$bin/psql" -X -q -v ON_ERROR_STOP=1 -h "$sockets" -U postgres postgres; }
sql <<EOF
create table entries(number integer primary key, content text);
create table total(number integer);
insert into total values(0);
EOF
sync -f "$data"
echo "ack 0"
for n in $(seq "$count"); do
    echo "begin; insert into entries values($n, repeat(md5('$n'), 1 + $n % 60));"
    echo "update total set number = $n; commit;"
    echo "\\echo ack $n"
done | sql
"#;

/// One line: PostgreSQL's single-user mode takes a query a line.
const INSPECT: &str = "select case when t.number = (select count(*) from entries) \
    and t.number = (select coalesce(max(number), 0) from entries) \
    and not exists (select from entries \
        where content <> repeat(md5(number::text), 1 + number % 60)) \
    then 'sound up to ' else 'unsound at ' end || t.number as verdict from total t";

/// Where its programs are, if it is installed.
pub fn programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let folders = versions.flatten().map(|v| v.path().join("bin"));
    folders
        .filter(|f| f.join("initdb").is_file() && f.join("psql").is_file())
        .max()
}

/// A server with its data in `data`, which is empty, and transactions on it.
pub fn workload(data: &Path, sockets: &Path, transactions: u64) -> Command {
    let mut command = Command::new("bash");
    command.args(["-c", RUN, "bash"]);
    command.arg(programs().expect("it was asked whether it is there"));
    command.arg(data).arg(sockets).arg(transactions.to_string());
    command
}

/// The last transaction of a crashed server's data: recovery ends, the tables agree, and every page
/// has its checksum.
pub fn inspect(data: &Path) -> Result<u64, String> {
    let bin = programs().expect("it was asked whether it is there");
    let _ = std::fs::remove_file(data.join("postmaster.pid"));
    said(Command::new("chown").args(["-R", "nobody"]).arg(data))?;
    // Recovery syncs what it writes; nobody will cut the power of this copy.
    let queries = data.join("inspect.sql");
    std::fs::write(&queries, format!("{INSPECT}\n")).map_err(|e| e.to_string())?;
    let queries = std::fs::File::open(&queries).map_err(|e| e.to_string())?;
    let mut server = as_nobody(&bin.join("postgres"));
    server.args(["--single", "-c", "fsync=off", "-D"]).arg(data);
    let told = said(server.arg("postgres").stdin(queries))?;
    said(
        as_nobody(&bin.join("pg_checksums"))
            .args(["--check", "-D"])
            .arg(data),
    )?;
    let number = told.split("\"sound up to ").nth(1);
    let number = number.and_then(|n| n.split('"').next());
    number.and_then(|n| n.parse().ok()).ok_or(told)
}

fn as_nobody(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"]);
    command.arg(program).current_dir("/").stdin(Stdio::null());
    command
}

fn said(command: &mut Command) -> Result<String, String> {
    let ended = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    let Output { stdout, stderr, .. } = &ended;
    let text = String::from_utf8_lossy(&[&stdout[..], &stderr[..]].concat()).into_owned();
    if ended.status.success() {
        Ok(text)
    } else {
        Err(format!("{command:?}: {text}"))
    }
}
