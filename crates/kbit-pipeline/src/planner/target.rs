//! What a plan is to reach.

use std::fmt;
use std::str::FromStr;

/// What a plan is to reach: the best file of a size, or the smallest of a quality.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// Bytes of the file at most.
    Size(u64),
    /// Bits a weight of all tensors at most, scales included.
    BitsPerWeight(f64),
    /// KL divergence from the unquantized model at most, nats a token.
    Divergence(f64),
    /// Perplexity over that of the unquantized model, less 1, at most.
    PerplexityIncrease(f64),
}

impl Target {
    /// Words before `=`.
    pub const KEYS: &'static [&'static str] = &["size", "bpw", "max_kld", "max_ppl_increase"];

    /// The target `key` with `value`, as in `size` and `3.1GiB`.
    ///
    /// # Errors
    /// An unknown key or a value that is none, in words.
    pub fn new(key: &str, value: &str) -> Result<Self, String> {
        let share = |text: &str| match text.trim().strip_suffix('%') {
            Some(percent) => positive(percent).map(|value| value / 100.0),
            None => positive(text),
        };
        match key {
            "size" => parse_size(value).map(Self::Size),
            "bpw" => positive(value).map(Self::BitsPerWeight),
            "max_kld" => positive(value).map(Self::Divergence),
            "max_ppl_increase" => share(value).map(Self::PerplexityIncrease),
            _ => Err(format!("there is no target `{key}`; {}", kbit_yaml::suggestion(key, Self::KEYS))),
        }
    }

    /// True where bytes are limited, and quality is to be the best.
    #[must_use]
    pub const fn limits_bytes(self) -> bool {
        matches!(self, Self::Size(_) | Self::BitsPerWeight(_))
    }

    /// As a name of a file may have it.
    #[must_use]
    pub fn label(self) -> String {
        match self {
            Self::Size(bytes) => format!("plan-{bytes}B"),
            Self::BitsPerWeight(bits) => format!("plan-{bits}bpw"),
            Self::Divergence(nats) => format!("plan-kld{nats}"),
            Self::PerplexityIncrease(share) => format!("plan-ppl{share}"),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size(bytes) => write!(f, "size={bytes}"),
            Self::BitsPerWeight(bits) => write!(f, "bpw={bits}"),
            Self::Divergence(nats) => write!(f, "max_kld={nats}"),
            Self::PerplexityIncrease(share) => write!(f, "max_ppl_increase={share}"),
        }
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((key, value)) => Self::new(key.trim(), value.trim()),
            None => Err("write size=3.1GiB, bpw=4.5, max_kld=0.01 or max_ppl_increase=2%".to_owned()),
        }
    }
}

fn positive(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(value) if value > 0.0 && value.is_finite() => Ok(value),
        _ => Err("write a number above 0".to_owned()),
    }
}

/// Reads `6GiB`, `1.5GB`, `700MiB`, `4096`.
///
/// # Errors
/// What to write instead.
pub fn parse_size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, f64); 11] = [
        ("KiB", 1024.0),
        ("MiB", 1_048_576.0),
        ("GiB", 1_073_741_824.0),
        ("TiB", 1_099_511_627_776.0),
        ("KB", 1e3),
        ("MB", 1e6),
        ("GB", 1e9),
        ("TB", 1e12),
        ("G", 1_073_741_824.0),
        ("M", 1_048_576.0),
        ("B", 1.0),
    ];
    let trimmed = text.trim();
    let (number, factor) = UNITS
        .iter()
        .find_map(|(unit, factor)| Some((trimmed.strip_suffix(unit)?, *factor)))
        .unwrap_or((trimmed, 1.0));
    match number.trim().parse::<f64>() {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be in range")]
        Ok(value) if value > 0.0 && value * factor < 9e18 => Ok((value * factor) as u64),
        _ => Err("write a size such as 6GiB, 700MiB, 2GB or a number of bytes".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_and_written() {
        for (text, target) in [
            ("size=3.5KiB", Target::Size(3584)),
            ("bpw=4.5", Target::BitsPerWeight(4.5)),
            ("max_kld=0.01", Target::Divergence(0.01)),
            ("max_ppl_increase=2%", Target::PerplexityIncrease(0.02)),
            ("max_ppl_increase=0.02", Target::PerplexityIncrease(0.02)),
        ] {
            assert_eq!(text.parse(), Ok(target));
            assert_eq!(target.to_string().parse(), Ok(target));
        }
    }

    #[test]
    fn what_is_no_target_is_told() {
        for (text, told) in [
            ("3GiB", "size=3.1GiB"),
            ("sise=3GiB", "did you mean `size`"),
            ("bpw=-1", "above 0"),
            ("bpw=inf", "above 0"),
            ("size=big", "6GiB"),
        ] {
            let error = text.parse::<Target>().unwrap_err();
            assert!(error.contains(told), "{text}: {error}");
        }
    }

    #[test]
    fn sizes_have_binary_and_decimal_units() {
        for (text, bytes) in [("6GiB", 6 << 30), ("2GB", 2_000_000_000), ("1.5 MiB", 3 << 19), ("42", 42)] {
            assert_eq!(parse_size(text), Ok(bytes));
        }
        assert!(parse_size("-1").is_err() && parse_size("lots").is_err() && parse_size("1e30").is_err());
    }
}
