//! What chat templates expect of Python: how values print, `tojson` as transformers defines it, the methods of `str` that
//! the template engine lacks, and the few tests and filters that differ.

use std::sync::LazyLock;

use minijinja::value::{Kwargs, Tuple, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value, filters};
use regex::Regex;

/// Makes an environment behave like the Jinja2 that transformers sets up.
pub(super) fn install(env: &mut Environment) {
    env.set_formatter(|out, _, value| Ok(out.write_str(&to_str(value)?)?));
    env.set_unknown_method_callback(method);
    env.add_filter("tojson", to_json);
    env.add_filter("string", |value: &Value| to_str(value));
    env.add_filter("trim", |s: &Value, chars: Option<&str>| Ok::<_, Error>(strip(&to_str(s)?, chars).to_owned()));
    env.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map)
    });
    env.add_test("iterable", |value: &Value| {
        !value.is_none() && (value.as_str().is_some() || value.try_iter().is_ok())
    });
    let length = |value: &Value| if value.is_undefined() { Ok(0) } else { filters::length(value) };
    env.add_filter("length", length);
    env.add_filter("count", length);
    env.add_filter("e", escape);
    env.add_filter("escape", escape);
    env.add_filter(
        "int",
        |state: &State, value: &Value, default: Option<Value>, base: Option<u32>, options: Kwargs| {
            let text = value.as_str().is_some();
            filters::int(state, value, default, base, options).or_else(|e| if text { Ok(0.into()) } else { Err(e) })
        },
    );
}

/// Escapes for HTML with the entities that Jinja2 uses.
fn escape(value: &Value) -> Result<String, Error> {
    let text = to_str(value)?.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    Ok(text.replace('\'', "&#39;").replace('"', "&#34;"))
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// `str(value)`.
pub(super) fn to_str(value: &Value) -> Result<String, Error> {
    match value.as_str() {
        Some(text) => Ok(text.to_owned()),
        None if value.is_undefined() => Ok(String::new()),
        None => repr(value),
    }
}

/// `repr(value)`.
fn repr(value: &Value) -> Result<String, Error> {
    Ok(match value.kind() {
        ValueKind::Number => number(value, ["nan", "inf", "-inf"]),
        ValueKind::String => repr_str(value.as_str().unwrap_or_default()),
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter()?.map(|item| repr(&item)).collect::<Result<Vec<_>, _>>()?;
            match (value.downcast_object_ref::<Tuple>().is_some(), items.len()) {
                (true, 1) => format!("({},)", items[0]),
                (true, _) => format!("({})", items.join(", ")),
                (false, _) => format!("[{}]", items.join(", ")),
            }
        }
        ValueKind::Map => {
            let entry = |key: Value| Ok(format!("{}: {}", repr(&key)?, repr(&value.get_item(&key)?)?));
            format!("{{{}}}", value.try_iter()?.map(entry).collect::<Result<Vec<_>, Error>>()?.join(", "))
        }
        ValueKind::Undefined => "Undefined".into(),
        _ => value.to_string(),
    })
}

/// A number as Python prints it, with the names of the numbers that are none.
fn number(value: &Value, [nan, inf, minus_inf]: [&str; 3]) -> String {
    let float = match f64::try_from(value.clone()) {
        Ok(float) if !value.is_integer() => float,
        _ => return value.to_string(),
    };
    if float.is_nan() {
        return nan.into();
    }
    if float.is_infinite() {
        return if float > 0.0 { inf } else { minus_inf }.into();
    }
    // Both languages print the shortest digits that read back as the same number; Python changes to an exponent
    // outside 1e-4 ..= 1e16, and writes it with a sign and two digits.
    if float != 0.0 && !(1e-4..1e16).contains(&float.abs()) {
        let text = format!("{float:e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
        return format!("{mantissa}e{sign}{digits:0>2}");
    }
    format!("{float:?}")
}

fn repr_str(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\n' => out += "\\n",
            '\r' => out += "\\r",
            '\t' => out += "\\t",
            '\\' => out += "\\\\",
            c if c == quote => out.extend(['\\', c]),
            c if printable(c) => out.push(c),
            c if (c as u32) < 0x100 => out += &format!("\\x{:02x}", c as u32),
            c if (c as u32) < 0x10000 => out += &format!("\\u{:04x}", c as u32),
            c => out += &format!("\\U{:08x}", c as u32),
        }
    }
    out.push(quote);
    out
}

/// `str.isprintable` of one character: nothing of the categories "other" and "separator", except the space.
fn printable(c: char) -> bool {
    static HIDDEN: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"[\p{C}\p{Z}]").expect("a valid pattern"));
    (' '..='~').contains(&c) || !HIDDEN.is_match(c.encode_utf8(&mut [0; 4]))
}

/// The `tojson` filter: `json.dumps(value, ensure_ascii, indent, separators, sort_keys)`, nothing escaped for HTML.
fn to_json(value: &Value, ensure_ascii: Option<bool>, indent: Option<Value>, options: Kwargs) -> Result<Value, Error> {
    let ensure_ascii = ensure_ascii.or(options.get("ensure_ascii")?).unwrap_or(false);
    let indent = match indent.or(options.get("indent")?).filter(|indent| !indent.is_none()) {
        None => None,
        Some(indent) => Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(usize::try_from(indent)?.min(64)),
        }),
    };
    let separators: Option<Vec<String>> = options.get("separators")?;
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(invalid("tojson: separators must be two strings")),
        None if indent.is_some() => (",".into(), ": ".into()),
        None => (", ".into(), ": ".into()),
    };
    let mut json = Json { out: String::new(), ensure_ascii, indent, item, key, sort_keys };
    json.value(value, 0)?;
    Ok(Value::from_safe_string(json.out))
}

struct Json {
    out: String,
    ensure_ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sort_keys: bool,
}

impl Json {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => self.out += "null",
            ValueKind::Bool => self.out += if value.is_true() { "true" } else { "false" },
            ValueKind::Number => self.out += &number(value, ["NaN", "Infinity", "-Infinity"]),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.items('[', ']', depth, &items, |json, item| json.value(item, depth + 1))?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.items('{', '}', depth, &keys, |json, key| {
                    match key.kind() {
                        ValueKind::String => json.string(key.as_str().unwrap_or_default()),
                        ValueKind::None | ValueKind::Bool | ValueKind::Number => {
                            json.out.push('"');
                            json.value(key, depth)?;
                            json.out.push('"');
                        }
                        kind => return Err(invalid(format!("tojson: a key cannot be of type {kind}"))),
                    }
                    json.out += &json.key.clone();
                    json.value(&value.get_item(key)?, depth + 1)
                })?;
            }
            kind => return Err(invalid(format!("tojson: a value of type {kind} is not JSON"))),
        }
        Ok(())
    }

    fn items(
        &mut self,
        open: char,
        close: char,
        depth: usize,
        items: &[Value],
        mut write: impl FnMut(&mut Json, &Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                self.out += &self.item.clone();
            }
            self.line(depth + 1);
            write(self, item)?;
        }
        if !items.is_empty() {
            self.line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            self.out += &indent.repeat(depth);
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out += "\\\"",
                '\\' => self.out += "\\\\",
                '\n' => self.out += "\\n",
                '\r' => self.out += "\\r",
                '\t' => self.out += "\\t",
                '\u{8}' => self.out += "\\b",
                '\u{c}' => self.out += "\\f",
                c if c < ' ' || (self.ensure_ascii && c > '~') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.out += &format!("\\u{unit:04x}");
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

/// Methods of Python's types. Those that the engine's own Python layer has and that agree with Python are left to it.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str()
        && let Some(result) = str_method(text, name, args)
    {
        return result;
    }
    match (value.kind(), name, args) {
        (ValueKind::Map | ValueKind::Seq, "copy", []) => return Ok(value.clone()),
        (ValueKind::Seq, "index", [wanted]) => {
            let at = value.try_iter()?.position(|item| item == *wanted);
            return at.map(Value::from).ok_or_else(|| invalid("list.index: the value is not in the list"));
        }
        _ => {}
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

fn str_method(s: &str, name: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    let chars = || from_args::<(Option<&str>,)>(args).map(|(chars,)| chars);
    let one = || from_args::<(&str,)>(args).map(|(text,)| text);
    Some(match name {
        "strip" => chars().map(|chars| strip(s, chars).into()),
        "lstrip" => chars().map(|chars| s.trim_start_matches(set(chars)).into()),
        "rstrip" => chars().map(|chars| s.trim_end_matches(set(chars)).into()),
        "split" => split(s, args, false),
        "rsplit" => split(s, args, true),
        "splitlines" => from_args::<(Option<bool>,)>(args).map(|(keep,)| split_lines(s, keep.unwrap_or(false))),
        "title" => from_args::<()>(args).map(|()| title(s).into()),
        "capitalize" => from_args::<()>(args).map(|()| capitalize(s).into()),
        "casefold" => from_args::<()>(args).map(|()| s.to_lowercase().replace('ß', "ss").into()),
        "removeprefix" => one().map(|prefix| s.strip_prefix(prefix).unwrap_or(s).into()),
        "removesuffix" => one().map(|suffix| s.strip_suffix(suffix).unwrap_or(s).into()),
        "partition" => one().map(|sep| match s.split_once(sep) {
            Some((before, after)) => Tuple::from([before, sep, after].map(Value::from)).into(),
            None => Tuple::from([s, "", ""].map(Value::from)).into(),
        }),
        "rpartition" => one().map(|sep| match s.rsplit_once(sep) {
            Some((before, after)) => Tuple::from([before, sep, after].map(Value::from)).into(),
            None => Tuple::from(["", "", s].map(Value::from)).into(),
        }),
        "index" => one().and_then(|text| match s.find(text) {
            Some(at) => Ok(s[..at].chars().count().into()),
            None => Err(invalid("substring not found")),
        }),
        "ljust" | "rjust" | "zfill" | "center" => justify(s, name, args),
        _ => return None,
    })
}

/// The characters that `str.strip` removes: those given, or white space.
fn set(chars: Option<&str>) -> impl Fn(char) -> bool + Copy {
    move |c| chars.map_or_else(|| is_space(c), |chars| chars.contains(c))
}

fn strip<'a>(s: &'a str, chars: Option<&str>) -> &'a str {
    s.trim_start_matches(set(chars)).trim_end_matches(set(chars))
}

/// `str.isspace` of one character: Unicode white space and the four ASCII separators.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// `str.split` and, from the right, `str.rsplit`.
fn split(s: &str, args: &[Value], from_right: bool) -> Result<Value, Error> {
    let (sep, max, options): (Option<&str>, Option<i64>, Kwargs) = from_args(args)?;
    let sep = sep.or(options.get("sep")?);
    let max = max.or(options.get("maxsplit")?).and_then(|max| usize::try_from(max).ok());
    options.assert_all_used()?;
    let limit = max.map_or(usize::MAX, |max| max.saturating_add(1));
    let mut parts: Vec<&str> = match sep {
        Some("") => return Err(invalid("empty separator")),
        Some(sep) if from_right => s.rsplitn(limit, sep).collect(),
        Some(sep) => s.splitn(limit, sep).collect(),
        None => split_space(s, limit, from_right),
    };
    if from_right {
        parts.reverse();
    }
    Ok(parts.into_iter().map(Value::from).collect())
}

/// Words between white space, at most `limit` parts; the last of so many keeps all that is left.
fn split_space(s: &str, limit: usize, from_right: bool) -> Vec<&str> {
    let near = |s| if from_right { str::trim_end_matches(s, is_space) } else { str::trim_start_matches(s, is_space) };
    let mut parts = Vec::new();
    let mut rest = near(s);
    while !rest.is_empty() {
        let cut = if from_right { rest.rfind(is_space) } else { rest.find(is_space) };
        let Some(at) = cut.filter(|_| parts.len() + 1 < limit) else {
            parts.push(rest);
            break;
        };
        let (head, tail) = rest.split_at(at);
        parts.push(if from_right { tail.trim_start_matches(is_space) } else { head });
        rest = near(if from_right { head } else { tail });
    }
    parts
}

fn split_lines(s: &str, keep: bool) -> Value {
    let is_break = |c: char| {
        matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
    };
    let mut lines = Vec::new();
    let mut rest = s;
    while !rest.is_empty() {
        let end = rest.find(is_break).unwrap_or(rest.len());
        let mark = match rest[end..].chars().next() {
            Some('\r') if rest[end..].starts_with("\r\n") => 2,
            first => first.map_or(0, char::len_utf8),
        };
        lines.push(Value::from(&rest[..if keep { end + mark } else { end }]));
        rest = &rest[end + mark..];
    }
    lines.into()
}

/// Upper case after anything that has no case.
fn title(s: &str) -> String {
    let mut out = String::new();
    let mut inside = false;
    for c in s.chars() {
        if inside {
            out.extend(c.to_lowercase())
        } else {
            out.extend(c.to_uppercase())
        }
        inside = c.is_lowercase() || c.is_uppercase();
    }
    out
}

fn capitalize(s: &str) -> String {
    let mut chars = s.chars();
    chars
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().chain(chars.as_str().to_lowercase().chars()).collect())
}

fn justify(s: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let (width, fill): (usize, Option<&str>) = from_args(args)?;
    let missing = width.min(1 << 16).saturating_sub(s.chars().count());
    let fill = fill.unwrap_or(if name == "zfill" { "0" } else { " " });
    Ok(Value::from(match name {
        "ljust" => s.to_owned() + &fill.repeat(missing),
        "rjust" => fill.repeat(missing) + s,
        "zfill" => {
            let digits = s.trim_start_matches(['+', '-']);
            let sign = &s[..(s.len() - digits.len()).min(1)];
            sign.to_owned() + &fill.repeat(missing) + &s[sign.len()..]
        }
        _ => {
            // Python puts the odd one to the left where the width is odd.
            let left = missing / 2 + (missing & width & 1);
            fill.repeat(left) + s + &fill.repeat(missing - left)
        }
    }))
}
