//! Sizes as people type them: `10G`, `512M`, `4096`.

/// Bytes of a size with an optional suffix K, M, G, T or P (powers of 1024; `GiB` and `GB` say the
/// same, as with QEMU's tools).
pub fn parse(s: &str) -> Result<u64, String> {
    let digits = s.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match s[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        "P" | "PB" | "PIB" => 50,
        other => return Err(format!("the suffix {other:?} is none of K, M, G, T, P")),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let number = |s: &str| {
        s.parse::<u64>()
            .map_err(|_| "use a number, for example 10G".to_owned())
    };
    let whole = number(whole)?
        .checked_mul(1 << shift)
        .ok_or("that is more than 64 bits can say")?;
    if fraction.is_empty() {
        return Ok(whole);
    }
    // Exact: a fraction of at most six digits of a power of two fits in 128 bits.
    let parts = 10u128.checked_pow(u32::try_from(fraction.len()).unwrap_or(u32::MAX));
    let parts = parts
        .filter(|p| *p <= 1_000_000)
        .ok_or("use at most six digits after the point")?;
    let rest = (u128::from(number(fraction)?) << shift) / parts;
    u64::try_from(rest)
        .ok()
        .and_then(|rest| whole.checked_add(rest))
        .ok_or_else(|| "that is more than 64 bits can say".to_owned())
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn sizes_read_as_people_type_them() {
        assert_eq!(parse("4096"), Ok(4096));
        assert_eq!(parse("10G"), Ok(10 << 30));
        assert_eq!(parse("10GiB"), Ok(10 << 30));
        assert_eq!(parse("1.5k"), Ok(1536));
        for bad in [
            "",
            "G",
            "10X",
            "-1",
            "1e3",
            "99999999P",
            "1.1234567G",
            "1.G.2",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
