//! Values as Python writes them, for templates that were written for Python.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, State, Value};
use std::fmt::Write;
use std::time::SystemTime;

/// Python's methods of strings, dictionaries and lists.
///
/// # Errors
/// When there is no such method, or its arguments are not such as it takes.
pub fn method(state: &State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        let argument = |index: usize| args.get(index).and_then(Value::as_str);
        match (name, argument(0)) {
            ("removeprefix", Some(prefix)) => {
                return Ok(text.strip_prefix(prefix).unwrap_or(text).into());
            }
            ("removesuffix", Some(suffix)) => {
                return Ok(text.strip_suffix(suffix).unwrap_or(text).into());
            }
            ("partition" | "rpartition", Some(mark)) if !mark.is_empty() => {
                let parts = if name == "partition" { text.split_once(mark) } else { text.rsplit_once(mark) };
                let parts = match parts {
                    Some((before, after)) => [before, mark, after],
                    None if name == "partition" => [text, "", ""],
                    None => ["", "", text],
                };
                return Ok(Value::from_iter(parts));
            }
            ("rsplit", Some(mark)) if !mark.is_empty() => {
                let most = args.get(1).and_then(|most| usize::try_from(most.clone()).ok());
                let mut parts: Vec<&str> = match most {
                    Some(most) => text.rsplitn(most.saturating_add(1), mark).collect(),
                    None => text.rsplit(mark).collect(),
                };
                parts.reverse();
                return Ok(Value::from_iter(parts));
            }
            _ => {}
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

/// `str(value)`.
#[must_use]
pub fn to_text(value: &Value) -> String {
    match value.kind() {
        ValueKind::Undefined => String::new(),
        ValueKind::String => value.as_str().unwrap_or_default().to_owned(),
        _ => {
            let mut out = String::new();
            write_repr(value, &mut out);
            out
        }
    }
}

/// `repr(value)`.
fn write_repr(value: &Value, out: &mut String) {
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::String => write_quoted(value.as_str().unwrap_or_default(), out),
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            for (index, item) in value.try_iter().into_iter().flatten().enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                write_repr(&item, out);
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (index, key) in value.try_iter().into_iter().flatten().enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                write_repr(&key, out);
                out.push_str(": ");
                write_repr(&value.get_item(&key).unwrap_or_default(), out);
            }
            out.push('}');
        }
        _ => {
            let _ = write!(out, "{value}");
        }
    }
}

/// A string literal: in single quotes, unless only these occur.
fn write_quoted(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_ascii_control() => {
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// Arguments of `json.dumps`.
pub(super) struct JsonOptions {
    pub(super) ensure_ascii: bool,
    pub(super) indent: Option<usize>,
    /// Between items, and between key and value.
    pub(super) separators: Option<Vec<String>>,
    pub(super) sort_keys: bool,
}

/// `json.dumps(value)`.
pub(super) fn to_json(value: &Value, options: &JsonOptions) -> Result<String, Error> {
    let mut out = String::new();
    write_json(value, options, 0, &mut out)?;
    Ok(out)
}

fn write_json(value: &Value, options: &JsonOptions, depth: usize, out: &mut String) -> Result<(), Error> {
    let given = |index: usize| options.separators.as_ref().and_then(|separators| separators.get(index));
    let between = given(0).map_or(if options.indent.is_some() { "," } else { ", " }, String::as_str);
    let colon = given(1).map_or(": ", String::as_str);
    let line = |depth: usize, out: &mut String| {
        if let Some(indent) = options.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    };
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => {
            let _ = write!(out, "{value}");
        }
        ValueKind::String => write_json_string(value.as_str().unwrap_or_default(), options.ensure_ascii, out),
        kind @ (ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) => {
            let is_map = kind == ValueKind::Map;
            let mut items: Vec<Value> = value.try_iter()?.collect();
            if is_map && options.sort_keys {
                items.sort();
            }
            out.push(if is_map { '{' } else { '[' });
            for (index, item) in items.iter().enumerate() {
                out.push_str(if index > 0 { between } else { "" });
                line(depth + 1, out);
                if is_map {
                    write_json_string(&to_text(item), options.ensure_ascii, out);
                    out.push_str(colon);
                    write_json(&value.get_item(item)?, options, depth + 1, out)?;
                } else {
                    write_json(item, options, depth + 1, out)?;
                }
            }
            if !items.is_empty() {
                line(depth, out);
            }
            out.push(if is_map { '}' } else { ']' });
        }
        kind => {
            return Err(Error::new(ErrorKind::BadSerialization, format!("{kind} cannot be written as JSON")));
        }
    }
    Ok(())
}

fn write_json_string(text: &str, ensure_ascii: bool, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            c if c < ' ' || (ensure_ascii && c > '~') => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// `strftime` of a time in UTC. What it does not know stays as it is.
pub(super) fn strftime(now: SystemTime, format: &str) -> String {
    const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let (mut year, mut day) = (1970, days);
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    while day >= 365 + u64::from(is_leap(year)) {
        day -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let day_of_year = day + 1;
    let mut month = 0;
    for length in [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    let day = day + 1;
    // 1970 began on a Thursday.
    let weekday = DAYS[usize::try_from((days + 4) % 7).unwrap_or(0)];
    let name = MONTHS[month];
    let hour_of_12 = (hour + 11) % 12 + 1;
    let mut out = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut after = rest.clone();
        let mut directive = after.next();
        let plain = directive == Some('-');
        if plain {
            directive = after.next();
        }
        let (value, width) = match directive {
            Some('d') => (day, 2),
            Some('m') => (month as u64 + 1, 2),
            Some('y') => (year % 100, 2),
            Some('Y') => (year, 4),
            Some('H') => (hour, 2),
            Some('I') => (hour_of_12, 2),
            Some('M') => (minute, 2),
            Some('S') => (second, 2),
            Some('j') => (day_of_year, 3),
            text => {
                match text {
                    Some('a') => out.push_str(&weekday[..3]),
                    Some('A') => out.push_str(weekday),
                    Some('b' | 'h') => out.push_str(&name[..3]),
                    Some('B') => out.push_str(name),
                    Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
                    Some('e') => {
                        let _ = write!(out, "{day:2}");
                    }
                    Some('F') => {
                        let _ = write!(out, "{year:04}-{:02}-{day:02}", month + 1);
                    }
                    Some('T') => {
                        let _ = write!(out, "{hour:02}:{minute:02}:{second:02}");
                    }
                    Some('Z') => out.push_str("UTC"),
                    Some('z') => out.push_str("+0000"),
                    Some('%') => out.push('%'),
                    _ => {
                        out.push('%');
                        continue;
                    }
                }
                rest = after;
                continue;
            }
        };
        let width = if plain { 0 } else { width };
        let _ = write!(out, "{value:0width$}");
        rest = after;
    }
    out
}
