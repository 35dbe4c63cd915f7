//! Kernel definitions, their instantiations and their parameters.

use std::collections::HashMap;
use std::ops::Range;

use anyhow::{Context, Result, bail};

use super::text::{close, find_word, is_word, split_top, strip_line_marks};

/// The kernels of a source.
#[derive(Default)]
pub(super) struct Kernels {
    /// Parameter list by function name.
    pub(super) parameters: HashMap<String, String>,
    /// Host name and the C++ expression to call.
    pub(super) callable: Vec<(String, String)>,
    /// Explicit instantiations; the wrappers instantiate what they call.
    instantiations: Vec<Range<usize>>,
}

impl Kernels {
    pub(super) fn find(source: &str) -> Result<Self> {
        let mut found = Self::default();
        let mut instances = vec![];
        let mut at = 0;
        while let Some(start) = find_word(source, "kernel", at) {
            at = start + "kernel".len();
            let statement = source[..start].rfind([';', '{', '}']).map_or(0, |i| i + 1);
            let before = strip_line_marks(&source[statement..start]);
            let tail = &source[start..source[start..].find([';', '{']).map_or(source.len(), |i| start + i)];
            let host = host_name(&before).or_else(|| host_name(tail));
            let words = before.trim_start();
            let template = words.strip_prefix("template");
            if template.is_some_and(|rest| !rest.trim_start().starts_with('<')) {
                let end = start + source[start..].find(';').context("instantiation without ;")?;
                let expression = strip_line_marks(source[at..end].trim_start_matches([']', ' ', '\n', '\t']));
                if let Some(expression) = instantiated(&expression)? {
                    instances.push((host.context("instantiation without host_name")?, expression));
                }
                at = end + 1;
                found.instantiations.push(statement..at);
                continue;
            }
            // A definition: `kernel void NAME(` or `[[kernel]] void NAME(`.
            let Some(void) = find_word(source, "void", at) else { continue };
            let between = &source[at..void];
            if between.contains([';', '{', '(']) && !between.contains("]]") {
                continue;
            }
            let Some(open) = source[void..].find('(').map(|i| void + i) else { continue };
            let name = source[void + "void".len()..open].trim();
            if name.is_empty() || !name.bytes().all(is_word) {
                continue;
            }
            at = close(source, open).context("parameter list")?;
            found.parameters.insert(name.to_owned(), strip_line_marks(&source[open + 1..at - 1]));
            if !words.contains("template") {
                found.callable.push((host.unwrap_or_else(|| name.to_owned()), name.to_owned()));
            }
        }
        found.callable.extend(instances);
        Ok(found)
    }

    /// The source with blank lines where instantiations were.
    pub(super) fn without_instantiations(&self, source: &str) -> String {
        let (mut out, mut done) = (String::with_capacity(source.len()), 0);
        for Range { start, end } in self.instantiations.iter().cloned() {
            out.push_str(&source[done..start]);
            out.extend(source[start..end].chars().filter(|c| *c == '\n'));
            done = end;
        }
        out.push_str(&source[done..]);
        out
    }
}

/// `f<float, 128>` of `decltype(f<float, 128>) f<float, 128>`, attributes and other words before it skipped.
fn instantiated(mut text: &str) -> Result<Option<String>> {
    loop {
        text = text.trim_start();
        if let Some(rest) = text.strip_prefix("[[") {
            text = &rest[rest.find("]]").context("unclosed attribute")? + 2..];
        } else if text.starts_with("decltype") {
            let open = text.find('(').context("decltype without (")?;
            text = &text[close(text, open).context("decltype without )")?..];
        } else {
            let word = text.bytes().take_while(|c| is_word(*c)).count();
            let rest = text[word..].trim_start();
            if rest.starts_with('<') {
                let open = text.len() - rest.len();
                return Ok(Some(text[..close(text, open).context("template arguments")?].to_owned()));
            }
            if word == 0 {
                return Ok(None);
            }
            text = rest;
        }
    }
}

/// `host_name("a" "b")` to `ab`.
fn host_name(attribute: &str) -> Option<String> {
    let start = attribute.find("host_name")?;
    let open = start + attribute[start..].find('(')?;
    let inner = &attribute[open + 1..close(attribute, open)? - 1];
    Some(inner.split('"').skip(1).step_by(2).collect())
}

/// The C++ expression that supplies one kernel parameter; `slot` is the next free buffer.
pub(super) fn argument(parameter: &str, slot: &mut u32) -> Result<String> {
    let (mut head, mut attributes, mut rest) = (String::new(), vec![], parameter);
    while let Some(start) = rest.find("[[") {
        let end = start + rest[start..].find("]]").context("unclosed attribute")?;
        head.push_str(&rest[..start]);
        attributes.extend(split_top(&rest[start + 2..end]).into_iter().map(str::trim));
        rest = &rest[end + 2..];
    }
    head.push_str(rest);
    if let Some(position) = attributes.iter().find_map(|a| position(a)) {
        let scalar = position.starts_with("i_") || position.starts_with("n_");
        return Ok(if scalar {
            format!("msl::{position}()")
        } else {
            format!("msl::Pos{{msl::{position}()}}")
        });
    }
    let number = |prefix: &str| {
        attributes.iter().find_map(|a| a.strip_prefix(prefix)?.trim_end_matches(')').trim().parse().ok())
    };
    let bound: Option<u32> = number("buffer(");
    let argument = match number("msl_threadgroup(") {
        // Threadgroup memory follows the 31 buffers of Metal.
        Some(n) => 32 + n,
        None => bound.unwrap_or(*slot),
    };
    if argument < 32 {
        *slot = argument + 1;
    }
    if head.contains('*') {
        Ok(format!("msl::Ptr{{msl::arg(b, {argument})}}"))
    } else if head.contains('&') {
        Ok(format!("msl::Ref{{msl::arg(b, {argument})}}"))
    } else {
        bail!("kernel parameter without a known attribute: {}", parameter.trim())
    }
}

/// The shim's name for a position that Metal passes by attribute.
fn position(attribute: &str) -> Option<&'static str> {
    Some(match attribute {
        "thread_position_in_grid" => "p_grid",
        "thread_position_in_threadgroup" => "p_tg",
        "threadgroup_position_in_grid" => "g_pos",
        "threads_per_threadgroup" | "dispatch_threads_per_threadgroup" => "tg_size",
        "threadgroups_per_grid" => "grid_groups",
        "threads_per_grid" => "grid_threads",
        "thread_index_in_threadgroup" => "i_tg",
        "thread_index_in_simdgroup" => "i_lane",
        "simdgroup_index_in_threadgroup" => "i_simd",
        "simdgroups_per_threadgroup" => "n_simd",
        "threads_per_simdgroup" | "thread_execution_width" => "n_lane",
        _ => return None,
    })
}
