//! Texts of settings into values, with errors that fit on one line.

use std::time::Duration;

use crate::config::ConfigError;

/// One setting as given on the command line or in the environment.
pub struct Setting<'a> {
    name: &'static str,
    text: Option<&'a str>,
    example: &'static str,
}

impl<'a> Setting<'a> {
    /// `name` is the environment variable. An empty text counts as not given: `VIEW=` in a file of variables means that.
    pub fn new(name: &'static str, given: &'a Option<String>, example: &'static str) -> Self {
        Self { name, text: given.as_deref().map(str::trim).filter(|t| !t.is_empty()), example }
    }

    pub fn text(&self) -> Option<&'a str> {
        self.text
    }

    /// The parsed value, or `default` if there is none. `parse` says what is wrong, without naming the setting.
    pub fn parse_or<T>(&self, default: T, parse: impl Fn(&str) -> Result<T, String>) -> Result<T, ConfigError> {
        Ok(self.parse(parse)?.unwrap_or(default))
    }

    pub fn parse<T>(&self, parse: impl Fn(&str) -> Result<T, String>) -> Result<Option<T>, ConfigError> {
        self.text.map(|text| parse(text).map_err(|why| self.error(&why))).transpose()
    }

    /// One line: which setting, what is wrong, what a good value looks like.
    pub fn error(&self, why: &str) -> ConfigError {
        let flag = self.name.to_ascii_lowercase().replace('_', "-");
        let why: String = why.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        ConfigError(format!("{} (--{flag}) {why}; a good value is {}", self.name, self.example))
    }
}

/// The start of a text, for messages: an absurdly long value must not fill the screen.
pub fn shown(text: &str) -> String {
    let start: String = text.chars().take(60).collect();
    if start.len() < text.len() { format!("'{start}…'") } else { format!("'{text}'") }
}

fn split_unit(text: &str) -> (&str, &str) {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    (&text[..digits], text[digits..].trim_start())
}

/// A duration such as `500ms`, `2s`, `5m`; a unit is required, except for 0.
pub fn duration(text: &str, min: Duration, max: Duration) -> Result<Duration, String> {
    let (digits, unit) = split_unit(text);
    let millis_per_unit = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "" if digits == "0" => 1,
        _ => return Err(format!("is {}, which is no time", shown(text))),
    };
    let millis = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(millis_per_unit));
    let value = millis.map(Duration::from_millis).ok_or_else(|| format!("is {}, which is no time", shown(text)))?;
    if value < min || value > max {
        return Err(format!("is {}, not between {min:?} and {max:?}", shown(text)));
    }
    Ok(value)
}

/// A size such as `4096`, `64KiB`, `1MiB`, `2GiB`.
pub fn bytes(text: &str, min: usize, max: usize) -> Result<usize, String> {
    let (digits, unit) = split_unit(text);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        _ => return Err(format!("is {}, which is no size", shown(text))),
    };
    let size = digits.parse::<usize>().ok().and_then(|n| n.checked_mul(1 << shift));
    in_range(size.ok_or_else(|| format!("is {}, which is no size", shown(text)))?, text, min, max)
}

/// A plain number.
pub fn count(text: &str, min: usize, max: usize) -> Result<usize, String> {
    let (digits, rest) = split_unit(text);
    let number = if rest.is_empty() { digits.parse::<usize>().ok() } else { None };
    in_range(number.ok_or_else(|| format!("is {}, which is no such number", shown(text)))?, text, min, max)
}

fn in_range(value: usize, text: &str, min: usize, max: usize) -> Result<usize, String> {
    if value < min || value > max {
        return Err(format!("is {}, not between {min} and {max}", shown(text)));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let parse = |text| duration(text, Duration::ZERO, Duration::from_secs(600));
        assert_eq!(parse("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse("2s"), Ok(Duration::from_secs(2)));
        assert_eq!(parse("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(parse("0"), Ok(Duration::ZERO));
        for bad in ["", "5", "s", "-1s", "1.5s", "1h", "11m", "99999999999999999999s", "18446744073709551615m"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_and_counts() {
        assert_eq!(bytes("4096", 1, 1 << 40), Ok(4096));
        assert_eq!(bytes("64KiB", 1, 1 << 40), Ok(65_536));
        assert_eq!(bytes("1 MiB", 1, 1 << 40), Ok(1 << 20));
        for bad in ["", "x", "-1", "1TB", "0", "99999999999999999999", "17179869184GiB"] {
            assert!(bytes(bad, 1, 1 << 40).is_err(), "{bad}");
        }
        assert_eq!(count("7", 1, 9), Ok(7));
        for bad in ["", "0", "10", "7x", "+7", "1180591620717411303424"] {
            assert!(count(bad, 1, 9).is_err(), "{bad}");
        }
    }

    #[test]
    fn errors_stay_on_one_short_line() {
        let given = Some(format!("a\nb{}", "x".repeat(1000)));
        let setting = Setting::new("MAX_BODY", &given, "1MiB");
        let line = setting.parse(|t| bytes(t, 1, 10)).unwrap_err().to_string();
        assert!(!line.contains('\n') && line.len() < 200, "{line}");
    }
}
