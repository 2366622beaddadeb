//! Histories as text: a header line, a column of stamps, one or more of values, and maybe one that
//! says whose they are.
//!
//! ```text
//! timestamp,value                    vm,ts,cores,…,wr_kbs,…
//! 2014-02-14 14:30:00,0.132          3,1375308176,1,…,4.4,…
//! ```

use std::collections::BTreeMap;
use std::fmt;

use super::series::Sample;

/// Headers under which a stamp is looked for; else the first column.
const STAMPS: [&str; 5] = ["timestamp", "ts", "time", "date", "datetime"];
/// Headers of the column that tells machines apart.
const OWNERS: [&str; 3] = ["vm", "vm_id", "instance"];

/// The samples of each machine in a file; the key is empty when the file has no such column.
pub type Histories = BTreeMap<String, Vec<Sample>>;

/// Why a file is not a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CsvError {
    /// No header line.
    Empty,
    /// The file begins with the mark of gzip.
    Compressed,
    /// No column of that name, or none given and several to choose from.
    Column {
        /// What was asked for.
        wanted: Option<String>,
        /// What there is.
        have: Vec<String>,
    },
    /// A line's stamp cannot be read.
    Stamp {
        /// Its number, from 1.
        line: usize,
        /// What stands there.
        found: String,
    },
    /// A line's value is neither a number nor empty.
    Value {
        /// Its number, from 1.
        line: usize,
        /// What stands there.
        found: String,
    },
}

impl fmt::Display for CsvError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(
                f,
                "the file is empty: a header line such as `timestamp,value` is needed"
            ),
            Self::Compressed => write!(f, "the file is compressed: unpack it first"),
            Self::Column { have, .. } if have.is_empty() => write!(
                f,
                "no column of values: one of times and one of values are needed, such as `timestamp,value`"
            ),
            Self::Column {
                wanted: Some(name),
                have,
            } => {
                write!(f, "no column `{name}`: choose one of {}", have.join(", "))
            }
            Self::Column { wanted: None, have } => {
                write!(
                    f,
                    "several columns of values: name one of {}",
                    have.join(", ")
                )
            }
            Self::Stamp { line, found } => write!(
                f,
                "line {line}: `{found}` is no time: seconds since 1970 or YYYY-MM-DD HH:MM:SS is needed"
            ),
            Self::Value { line, found } => write!(f, "line {line}: `{found}` is no number"),
        }
    }
}

impl std::error::Error for CsvError {}

/// Reads one column of every machine in `text`. An empty value, `NaN` and `null` are missing samples.
pub fn read(text: &str, column: Option<&str>) -> Result<Histories, CsvError> {
    if text.starts_with('\u{1f}') {
        return Err(CsvError::Compressed);
    }
    let mut lines = text.lines().enumerate().filter(|(_, line)| !is_blank(line));
    let (_, header) = lines.next().ok_or(CsvError::Empty)?;
    let names: Vec<&str> = header
        .trim_start_matches('\u{feff}')
        .split(',')
        .map(str::trim)
        .collect();
    let known = |wanted: &[&str]| {
        names
            .iter()
            .position(|name| wanted.contains(&name.to_lowercase().as_str()))
    };
    let stamp = known(&STAMPS).unwrap_or(0);
    let owner = known(&OWNERS);
    let value = choose(&names, stamp, owner, column)?;

    let mut histories = Histories::new();
    // A machine's lines mostly follow each other: they are looked up together.
    let mut run = ("", Vec::new());
    let last = stamp.max(value).max(owner.unwrap_or(0));
    let mut fields = vec![""; last + 1];
    for (index, line) in lines {
        split(line, &mut fields);
        let number = index + 1;
        let at = seconds(fields[stamp]).ok_or_else(|| CsvError::Stamp {
            line: number,
            found: fields[stamp].into(),
        })?;
        let found = fields[value];
        let sample = match plain(found.as_bytes()) {
            Some(sample) => sample,
            None => match found.parse() {
                Ok(sample) => sample,
                Err(_) if is_missing(found) => f64::NAN,
                Err(_) => {
                    return Err(CsvError::Value {
                        line: number,
                        found: found.into(),
                    });
                }
            },
        };
        if let Some(owner) = owner
            && fields[owner] != run.0
        {
            keep(&mut histories, &mut run);
            run.0 = fields[owner];
        }
        run.1.push((at, sample));
    }
    keep(&mut histories, &mut run);
    Ok(histories)
}

/// Adds a machine's samples to those that are there.
fn keep(histories: &mut Histories, (whose, samples): &mut (&str, Vec<Sample>)) {
    match histories.get_mut(*whose) {
        Some(kept) => kept.append(samples),
        None if samples.is_empty() => {}
        None => drop(histories.insert((*whose).to_owned(), std::mem::take(samples))),
    }
}

/// Whether a line has nothing but space. Nearly all begin with something else.
fn is_blank(line: &str) -> bool {
    !line.as_bytes().first().is_some_and(u8::is_ascii_graphic) && line.trim().is_empty()
}

/// The first fields of a line; those that it does not have are empty.
fn split<'a>(line: &'a str, fields: &mut [&'a str]) {
    let mut rest = line;
    for field in fields {
        let end = rest.bytes().position(|byte| byte == b',');
        *field = rest[..end.unwrap_or(rest.len())].trim_ascii();
        rest = end.map_or("", |end| &rest[end + 1..]);
    }
}

/// A number of at most fifteen digits, maybe with a point among them, exactly as it is parsed otherwise: the digits
/// and the power of ten are both exact, so that one division rounds as it must.
fn plain(text: &[u8]) -> Option<f64> {
    const MOST_DIGITS: usize = 15;
    const TENS: [f64; MOST_DIGITS + 1] = [
        1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15,
    ];
    let (mut digits, mut point) = (0u64, None);
    for (at, byte) in text.iter().enumerate() {
        match byte {
            b'0'..=b'9' => digits = digits * 10 + u64::from(byte - b'0'),
            b'.' if point.is_none() => point = Some(at),
            _ => return None,
        }
        if at > MOST_DIGITS {
            return None;
        }
    }
    let count = text.len() - usize::from(point.is_some());
    let decimals = point.map_or(0, |point| text.len() - 1 - point);
    let is_short = (1..=MOST_DIGITS).contains(&count);
    is_short.then(|| digits as f64 / TENS[decimals])
}

fn is_missing(value: &str) -> bool {
    let words = ["", "null", "none"];
    words.iter().any(|word| value.eq_ignore_ascii_case(word))
}

fn choose(
    names: &[&str],
    stamp: usize,
    owner: Option<usize>,
    column: Option<&str>,
) -> Result<usize, CsvError> {
    let values: Vec<usize> = (0..names.len())
        .filter(|at| *at != stamp && Some(*at) != owner)
        .collect();
    let chosen = match column {
        Some(wanted) => values.iter().find(|at| names[**at] == wanted),
        None if values.len() == 1 => values.first(),
        None => values.iter().find(|at| names[**at] == "value"),
    };
    chosen.copied().ok_or_else(|| CsvError::Column {
        wanted: column.map(str::to_owned),
        have: values.iter().map(|at| names[*at].to_owned()).collect(),
    })
}

/// Seconds since 1970 of a number (milliseconds if it is too large to be seconds) or of a date and
/// time of day in UTC.
fn seconds(text: &str) -> Option<i64> {
    /// The year 5138 in seconds, 1973 in milliseconds.
    const MILLISECONDS_FROM: f64 = 1e11;
    if let Some(at) = usual(text.as_bytes()) {
        return Some(at);
    }
    if let Some(number) = plain(text.as_bytes()).or_else(|| text.parse().ok()) {
        let number = if number.abs() >= MILLISECONDS_FROM {
            number / 1000.0
        } else {
            number
        };
        return number.is_finite().then_some(number.floor() as i64);
    }
    let (date, time) = text.split_once(['T', ' ']).unwrap_or((text, "0:0:0"));
    let mut date = date.splitn(3, '-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let time = time.trim_end_matches('Z').split('.').next()?;
    let mut time = time.splitn(3, ':').map(|part| part.parse::<i64>().ok());
    let (hour, minute, second) = (
        time.next()??,
        time.next()??,
        time.next().unwrap_or(Some(0))?,
    );
    instant([year, month, day], [hour, minute, second])
}

/// A date and a time of day as most tools write them, `YYYY-MM-DD hh:mm:ss`; all else takes five times as
/// long.
fn usual(text: &[u8]) -> Option<i64> {
    let [
        y,
        e,
        a,
        r,
        b'-',
        o,
        n,
        b'-',
        d,
        c,
        b' ' | b'T',
        h,
        i,
        b':',
        m,
        j,
        b':',
        s,
        k,
    ] = text
    else {
        return None;
    };
    let number = |digits: &[&u8]| {
        digits.iter().try_fold(0, |sum, digit| {
            digit
                .is_ascii_digit()
                .then(|| 10 * sum + i64::from(**digit - b'0'))
        })
    };
    let (year, month, day) = (number(&[y, e, a, r])?, number(&[o, n])?, number(&[d, c])?);
    let (hour, minute, second) = (number(&[h, i])?, number(&[m, j])?, number(&[s, k])?);
    instant([year, month, day], [hour, minute, second])
}

/// The second of a date and a time of day, if there are such.
fn instant([year, month, day]: [i64; 3], [hour, minute, second]: [i64; 3]) -> Option<i64> {
    let sane = (1..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && (0..24).contains(&hour)
        && (0..60).contains(&minute)
        && (0..=60).contains(&second);
    sane.then(|| days_since_1970(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second)
}

/// Counts days in years that begin in March, so that the leap day is the last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let before = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    before - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_numbers_are_those_of_the_parser() {
        for text in [
            "0",
            "7",
            ".5",
            "5.",
            "0.1",
            "13.5866667",
            "123456789012345",
            "1375308176",
            "00.10",
            "99999999999999.9",
            "0.00000000000001",
        ] {
            let parsed: f64 = text.parse().unwrap();
            assert_eq!(
                plain(text.as_bytes()).map(f64::to_bits),
                Some(parsed.to_bits()),
                "{text}"
            );
        }
        for other in [
            "",
            ".",
            "-1",
            "1e3",
            "1.2.3",
            "nan",
            "1234567890123456",
            "0.1234567890123456",
        ] {
            assert_eq!(plain(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn dates_and_numbers_are_the_same_time() {
        assert_eq!(seconds("1970-01-01 00:00:00"), Some(0));
        assert_eq!(seconds("2000-02-29T12:00:01Z"), Some(951_825_601));
        assert_eq!(seconds("2000-02-29 12:00:01"), Some(951_825_601));
        assert_eq!(seconds("951825601.9"), Some(951_825_601));
        assert_eq!(seconds("951825601000"), Some(951_825_601));
        for wrong in [
            "",
            "yesterday",
            "2014-13-01 00:00:00",
            "2014-02-14 25:00:00",
            "2014-02-14 2x:00:00",
            "inf",
            "NaN",
        ] {
            assert_eq!(seconds(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_only_column_of_values_needs_no_name() {
        let read = read(
            "timestamp,value\n0,1.5\n300,\n600,nan\n900,NULL\n1200\n",
            None,
        )
        .unwrap();
        assert_eq!(read[""][0], (0, 1.5));
        assert_eq!(read[""].len(), 5);
        assert!(read[""][1..].iter().all(|sample| sample.1.is_nan()));
    }

    #[test]
    fn machines_in_one_file_are_told_apart() {
        let text = "vm,ts,rd,wr\na,0,1,2\nb,0,3,4\na,300,5,6\n";
        let histories = read(text, Some("wr")).unwrap();
        assert_eq!(histories["a"], vec![(0, 2.0), (300, 6.0)]);
        assert_eq!(histories["b"], vec![(0, 4.0)]);
        let error = read(text, None).unwrap_err();
        assert_eq!(
            error.to_string(),
            "several columns of values: name one of rd, wr"
        );
        assert!(
            read(text, Some("cpu"))
                .unwrap_err()
                .to_string()
                .starts_with("no column `cpu`")
        );
    }

    /// A file with nothing but times was asked to name one of no columns.
    #[test]
    fn a_file_without_values_is_told_what_it_lacks() {
        for (text, column) in [
            ("timestamp\n0\n300\n", None),
            ("timestamp\n0\n", Some("cpu")),
            ("vm,ts\na,0\n", None),
            ("one word\n", None),
        ] {
            let error = read(text, column).unwrap_err().to_string();
            assert!(error.starts_with("no column of values: "), "{error}");
        }
    }

    #[test]
    fn what_is_no_history_is_refused_with_its_line() {
        assert_eq!(read("", None), Err(CsvError::Empty));
        assert_eq!(read("\u{1f}\u{8b}", None), Err(CsvError::Compressed));
        let stamp = read("timestamp,value\n0,1\nsoon,2\n", None).unwrap_err();
        assert_eq!(
            stamp,
            CsvError::Stamp {
                line: 3,
                found: "soon".into()
            }
        );
        let value = read("timestamp,value\n0,much\n", None).unwrap_err();
        assert_eq!(
            value,
            CsvError::Value {
                line: 2,
                found: "much".into()
            }
        );
    }
}
