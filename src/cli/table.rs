//! Small tables of names and values, and numbers as people write them.

use std::fmt::Display;

use bytesize::ByteSize;

/// Two columns, names to the left. Empty names continue the row above.
#[derive(Default)]
pub struct Table {
    rows: Vec<(String, String)>,
}

impl Table {
    pub fn row(&mut self, name: impl Display, value: impl Display) -> &mut Self {
        self.rows.push((name.to_string(), value.to_string()));
        self
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let width = self.rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        self.rows.iter().try_for_each(|(name, value)| writeln!(f, "{}", format!("{name:width$}  {value}").trim_end()))
    }
}

/// Memory, in powers of 1024: `1.5 GiB`.
pub fn memory(bytes: impl TryInto<u64>) -> String {
    ByteSize::b(bytes.try_into().unwrap_or(u64::MAX)).display().iec().to_string()
}

/// Data on disk, in powers of 1000: `141.1 GB`.
pub fn data(bytes: u64) -> String {
    ByteSize::b(bytes).display().si().to_string()
}

/// Bytes per second: `2.31 GB/s`.
pub fn rate(bytes_per_second: f64) -> String {
    match bytes_per_second {
        rate if rate >= 1e9 => format!("{:.2} GB/s", rate / 1e9),
        rate => format!("{:.0} MB/s", rate / 1e6),
    }
}

/// A duration with as many digits as matter: `42.1 ms`, `3.1 s`, `12 min 5 s`.
pub fn seconds(seconds: f64) -> String {
    match seconds {
        s if s < 0.1 => format!("{:.1} ms", s * 1e3),
        s if s < 1.0 => format!("{s:.2} s"),
        s if s < 100.0 => format!("{s:.1} s"),
        s if s < 6000.0 => format!("{} min {} s", s as u64 / 60, s as u64 % 60),
        s => format!("{} h {} min", s as u64 / 3600, s as u64 / 60 % 60),
    }
}

/// A whole number with its noun: `1 token`, `12 tokens`.
pub fn count(n: impl TryInto<u64>, noun: &str) -> String {
    match n.try_into().unwrap_or(u64::MAX) {
        1 => format!("1 {noun}"),
        n => format!("{n} {noun}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::default();
        table.row("a", 1).row("long", "x").row("", "");
        assert_eq!(table.to_string(), "a     1\nlong  x\n\n");
    }

    #[test]
    fn numbers_as_people_write_them() {
        assert_eq!(memory(1u64 << 30), "1.0 GiB");
        assert_eq!(data(141_100_000_000), "141.1 GB");
        assert_eq!(rate(2.314e9), "2.31 GB/s");
        assert_eq!(rate(28.4e6), "28 MB/s");
        assert_eq!(seconds(0.0421), "42.1 ms");
        assert_eq!(seconds(0.42), "0.42 s");
        assert_eq!(seconds(3.12), "3.1 s");
        assert_eq!(seconds(725.0), "12 min 5 s");
        assert_eq!(seconds(7300.0), "2 h 1 min");
        assert_eq!(count(1, "token"), "1 token");
        assert_eq!(count(0, "token"), "0 tokens");
    }
}
