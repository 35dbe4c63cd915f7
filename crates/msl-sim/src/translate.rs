//! From preprocessed Metal source to one C++ unit: threadgroup variables become references into simulated
//! memory, and every kernel or instantiation gets a wrapper that hands it its arguments.

mod kernels;
mod text;
mod threadgroup;

use std::fmt::Write as _;

use anyhow::{Context, Result};

use kernels::Kernels;
use text::{is_word, split_top};

pub(crate) struct Unit {
    pub(crate) text: String,
    pub(crate) kernels: Vec<String>,
}

pub(crate) fn translate(preprocessed: &str) -> Result<Unit> {
    let source = threadgroup::rewrite(preprocessed)?;
    let found = Kernels::find(&source)?;
    let body = found.without_instantiations(&source);
    let mut text = format!("#include \"msl_shim.hpp\"\n{body}\n#include \"msl_main.hpp\"\n");
    let (mut table, mut kernels) = (String::new(), vec![]);
    for (i, (host_name, expression)) in found.callable.iter().enumerate() {
        let base = expression.split(|c: char| !c.is_ascii() || !is_word(c as u8)).next().unwrap_or_default();
        let parameters = found.parameters.get(base);
        let parameters =
            parameters.with_context(|| format!("kernel {host_name}: no definition of {base}"))?;
        let mut slot = 0;
        let arguments = split_top(parameters)
            .into_iter()
            .map(|parameter| kernels::argument(parameter, &mut slot))
            .collect::<Result<Vec<_>>>()?;
        let arguments = arguments.join(", ");
        writeln!(text, "static void msl_call_{i}(const msl::Buf* b) {{ {expression}({arguments}); }}")?;
        writeln!(table, "{{\"{host_name}\", msl_call_{i}}},")?;
        kernels.push(host_name.clone());
    }
    writeln!(text, "static const msl::Kernel msl_kernels[] = {{\n{table}{{nullptr, nullptr}}}};")?;
    writeln!(
        text,
        "static void msl_set_constant(int i, const void* p, size_t n) {{ switch (i) {{\n{}\
         default: msl::fail(msl::E_USAGE, \"no such function constant\"); }} }}",
        function_constants(&source)?
    )?;
    text.push_str(
        "int main(int c, char** v) { return msl::sim_main(c, v, msl_kernels, msl_set_constant); }\n",
    );
    Ok(Unit { text, kernels })
}

/// One `case` for each variable with `[[function_constant(n)]]`.
fn function_constants(source: &str) -> Result<String> {
    const WORD: &str = "function_constant(";
    let mut cases = String::new();
    for (start, _) in source.match_indices(WORD) {
        let rest = &source[start + WORD.len()..];
        let number = rest.split(')').next().unwrap_or_default().trim();
        let before = source[..start].trim_end_matches(['[', ' ']).trim_end();
        let name = before.rsplit(|c: char| !c.is_ascii() || !is_word(c as u8)).next().unwrap_or_default();
        if number.parse::<u32>().is_ok() {
            writeln!(
                cases,
                "case {number}: std::memcpy((void*)&{name}, p, n < sizeof {name} ? n : sizeof {name}); break;"
            )?;
        }
    }
    Ok(cases)
}
