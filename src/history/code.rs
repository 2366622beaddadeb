//! A sample in sixteen bits, and many of them in few bytes.
//!
//! Nobody forecasts a disk's writes to the seventh digit: ten bits of mantissa are a precision of one
//! in two thousand, and six bits of exponent reach from a millionth to 17 terabytes a second. What is
//! measured here is never negative. Code 0 is a sample that is missing.
//!
//! A block of codes is stored as differences from one sample to the next, all low bytes and then all
//! high bytes, under zstd: a series that stands still takes nearly nothing.

use node::{Error, ErrorKind, Result};

/// The code of a missing sample.
pub const MISSING: u16 = 0;
const ZERO: u16 = 1;
const FIRST: u32 = 2;
const MANTISSA_BITS: u32 = 10;
/// Bits of an `f32`'s mantissa that are rounded away.
const ROUNDED: u32 = 23 - MANTISSA_BITS;
/// The exponent field of 2^-20, below which a value is zero.
const LEAST_EXPONENT: u32 = 127 - 20;
/// How hard zstd tries: beyond this it takes longer and finds nothing more.
const LEVEL: i32 = 3;

/// The code of a value; what is no number or infinite is missing.
pub fn encode(value: f64) -> u16 {
    if !value.is_finite() {
        return MISSING;
    }
    // Not `max`: it may answer with the zero that has a sign.
    let size = if value > 0.0 { value.min(1e30) } else { 0.0 };
    let bits = (size as f32).to_bits();
    let rounded = (bits + (1 << (ROUNDED - 1))) >> ROUNDED;
    match rounded.checked_sub(LEAST_EXPONENT << MANTISSA_BITS) {
        Some(code) => (code + FIRST).min(u32::from(u16::MAX)) as u16,
        None => ZERO,
    }
}

/// The value of a code; none where the sample is missing.
pub fn decode(code: u16) -> Option<f64> {
    match code {
        MISSING => None,
        ZERO => Some(0.0),
        _ => {
            let bits = (u32::from(code) - FIRST + (LEAST_EXPONENT << MANTISSA_BITS)) << ROUNDED;
            Some(f64::from(f32::from_bits(bits)))
        }
    }
}

/// Many codes in few bytes.
pub fn pack(codes: &[u16]) -> Result<Vec<u8>> {
    let mut planes = vec![0; 2 * codes.len()];
    let (low, high) = planes.split_at_mut(codes.len());
    let mut last = 0u16;
    for ((code, low), high) in codes.iter().zip(low).zip(high) {
        // Zigzag: small falls and small rises both leave the high byte zero.
        let step = code.wrapping_sub(last) as i16;
        let step = ((step << 1) ^ (step >> 15)) as u16;
        [*low, *high] = step.to_le_bytes();
        last = *code;
    }
    zstd::bulk::compress(&planes, LEVEL).map_err(|e| Error::io("compress a history", e))
}

/// The `count` codes that were packed.
pub fn unpack(bytes: &[u8], count: usize) -> Result<Vec<u16>> {
    let damaged = || {
        Error::new(
            ErrorKind::Corrupt,
            format!(
                "read a history: a block does not hold {count} samples; remove the history's file to begin anew"
            ),
        )
    };
    let planes = zstd::bulk::decompress(bytes, 2 * count).map_err(|_| damaged())?;
    if planes.len() != 2 * count {
        return Err(damaged());
    }
    let (low, high) = planes.split_at(count);
    let mut last = 0u16;
    let codes = low.iter().zip(high).map(|(low, high)| {
        let step = u16::from_le_bytes([*low, *high]);
        let step = (step >> 1) ^ (step & 1).wrapping_neg();
        last = last.wrapping_add(step);
        last
    });
    Ok(codes.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_no_number_is_missing_and_nothing_is_negative() {
        for wrong in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(decode(encode(wrong)), None);
        }
        for zero in [0.0, -0.0, -5.0, 1e-9] {
            assert_eq!(decode(encode(zero)), Some(0.0));
        }
        assert!(decode(encode(1e300)) > Some(1e13));
    }

    proptest! {
        #[test]
        fn a_sample_keeps_three_digits(value in 1e-5f64..1e13) {
            let kept = decode(encode(value)).unwrap();
            prop_assert!((kept - value).abs() <= value / 2000.0, "{value} became {kept}");
            prop_assert_eq!(encode(kept), encode(value), "a second time changes nothing");
        }

        #[test]
        fn what_is_packed_comes_back(codes in prop::collection::vec(any::<u16>(), 0..2000)) {
            prop_assert_eq!(unpack(&pack(&codes).unwrap(), codes.len()).unwrap(), codes);
        }

        #[test]
        fn a_damaged_block_is_an_error(codes in prop::collection::vec(any::<u16>(), 1..200), cut in 1usize..9) {
            let packed = pack(&codes).unwrap();
            let cut = packed.len().saturating_sub(cut);
            prop_assert!(unpack(&packed[..cut], codes.len()).is_err());
            prop_assert!(unpack(&packed, codes.len() + 1).is_err());
        }
    }
}
