//! A number of bytes as a user writes it, to the supervisor or to a back-end that
//! is started by hand: `512M`, `4G`.

/// The bytes that `text` says: a number, then K, M, G, T (also small, or as in
/// KiB) or nothing. `None` for anything else, or more than 64 bits hold.
pub fn parse(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|letter: char| !letter.is_ascii_digit());
    let unit = text.get(digits.len()..)?;
    let shift = match unit.to_ascii_uppercase().as_str() {
        "" => 0,
        "K" | "KIB" => 10,
        "M" | "MIB" => 20,
        "G" | "GIB" => 30,
        "T" | "TIB" => 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_have_units_or_none() {
        for (text, bytes) in [
            ("512", 512),
            ("0M", 0),
            ("4k", 4 << 10),
            ("512M", 512 << 20),
            ("4GiB", 4 << 30),
            ("16777215T", 16_777_215 << 40),
        ] {
            assert_eq!(parse(text), Some(bytes), "{text}");
        }
        for wrong in [
            "",
            "M",
            "4X",
            "4GB",
            "4 G",
            "-1G",
            "1.5G",
            "16777216T",
            "99999999999999999999",
        ] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange_to_refuse(text in ".*") {
            let _ = parse(&text);
        }
    }
}
