//! Threadgroup variables.

use std::fmt::Write as _;

use anyhow::{Context, Result, bail};

use super::text::{close, find_word, is_word};

const WORD: &str = "threadgroup";

/// Makes `threadgroup T name[n];` a reference into the simulated threadgroup memory.
pub(super) fn rewrite(source: &str) -> Result<String> {
    let mut out = String::with_capacity(source.len());
    let (mut from, mut id) = (0, 0);
    while let Some(start) = find_word(source, WORD, from) {
        let end = start + WORD.len();
        out.push_str(&source[from..start]);
        from = end;
        let stop = significant(source, end)?;
        let declared = stop.map_or("", |stop| source[end..stop].trim());
        match stop.map(|stop| source.as_bytes()[stop]) {
            Some(b';') => {
                let dims = declared.find('[').filter(|i| *i > 0).unwrap_or(declared.len());
                let is_end = |c: char| !c.is_ascii() || !is_word(c as u8);
                let name_at = declared[..dims].trim_end().rfind(is_end).map_or(0, |i| i + 1);
                let (ty, name) = (&declared[..name_at], declared[name_at..dims].trim());
                if ty.trim().is_empty() {
                    out.push_str(WORD);
                    continue;
                }
                write!(
                    out,
                    "typedef {ty} {name}_t{}; auto& {name} = \
                     *({name}_t*)msl::tg_var({id}, sizeof({name}_t), alignof({name}_t))",
                    &declared[dims..]
                )?;
                id += 1;
                from = stop.unwrap_or(end);
            }
            // The attribute [[threadgroup(n)]] must survive the macro that erases the word.
            Some(b'(') if declared.is_empty() => out.push_str("msl_threadgroup"),
            Some(b'=' | b'{') => refuse(declared)?,
            Some(b',') if declared.contains('[') => refuse(declared)?,
            _ => out.push_str(WORD),
        }
    }
    out.push_str(&source[from..]);
    Ok(out)
}

fn refuse(declared: &str) -> Result<()> {
    bail!("declare one threadgroup variable per statement, without initialiser: {declared}")
}

/// The first character after a type and a name that says what this is; array bounds may hold any operator.
fn significant(source: &str, from: usize) -> Result<Option<usize>> {
    let mut at = from;
    while let Some(c) = source.as_bytes().get(at) {
        match c {
            b'[' | b'<' => at = close(source, at).context("unbalanced brackets after `threadgroup`")?,
            b'*' | b'&' | b'(' | b')' | b',' | b';' | b'=' | b'{' | b'}' | b'>' => return Ok(Some(at)),
            _ => at += 1,
        }
    }
    Ok(None)
}
