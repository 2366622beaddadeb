//! Files of samples, plain or packed with gzip.

use std::path::Path;
use std::process::Command;

use super::Failure;

/// Endings of the files that hold a fleet's series.
const ENDINGS: [&str; 2] = [".csv", ".csv.gz"];

/// The text of every file of samples in a directory, with its name.
pub(super) fn all(folder: &Path) -> Result<Vec<(String, String)>, Failure> {
    let failed = |why: &dyn std::fmt::Display| {
        Failure::new(format!("read series in {}: {why}", folder.display()))
    };
    let entries = std::fs::read_dir(folder).map_err(|e| failed(&e))?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| failed(&e))?.path();
        let name = path.to_string_lossy().into_owned();
        if ENDINGS.iter().any(|ending| name.ends_with(ending)) {
            found.push((name, read(&path)?));
        }
    }
    // the order in a directory is any
    found.sort_unstable();
    if found.is_empty() {
        return Err(failed(&"no .csv or .csv.gz file in it"));
    }
    Ok(found)
}

/// One file's text. What ends in `.gz` is unpacked by the program `gzip`.
pub(super) fn read(path: &Path) -> Result<String, Failure> {
    let failed =
        |why: &dyn std::fmt::Display| Failure::new(format!("read {}: {why}", path.display()));
    let bytes = if path.extension().is_some_and(|ending| ending == "gz") {
        let gzip = Command::new("gzip").arg("-dc").arg(path).output();
        let gzip = gzip.map_err(|e| failed(&format!("run gzip: {e}")))?;
        if !gzip.status.success() {
            let said = String::from_utf8_lossy(&gzip.stderr);
            return Err(failed(&format!("{}: {}", gzip.status, said.trim())));
        }
        gzip.stdout
    } else {
        std::fs::read(path).map_err(|e| failed(&e))?
    };
    Ok(String::from_utf8(bytes)
        .unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_and_plain_files_say_the_same_and_damaged_ones_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let error = all(folder.path()).unwrap_err().to_string();
        assert!(error.contains("no .csv or .csv.gz"), "{error}");
        std::fs::write(path("a.csv"), "vm,ts\n1,2\n").unwrap();
        std::fs::write(path("notes.txt"), "nothing").unwrap();
        let packed = Command::new("gzip").arg("-c").arg(path("a.csv")).output();
        let packed = packed.unwrap().stdout;
        std::fs::write(path("b.csv.gz"), &packed).unwrap();
        let texts: Vec<_> = all(folder.path())
            .unwrap()
            .into_iter()
            .map(|(_, text)| text)
            .collect();
        assert_eq!(texts, ["vm,ts\n1,2\n"; 2]);
        std::fs::write(path("b.csv.gz"), &packed[..packed.len() - 6]).unwrap();
        let error = all(folder.path()).unwrap_err().to_string();
        assert!(error.contains("b.csv.gz"), "{error}");
    }
}
