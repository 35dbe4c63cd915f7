//! Plans of Metal kernels: kernel, grid and arguments of one dispatch for given shapes.
//!
//! A [`KernelPlan`] is all that a device is told. Plain functions make it, which compile and are tested everywhere: tests
//! run the same plans on the CPU, in a simulator, against references in f64; on a Mac an encoder hands them to the device as
//! they are. Each family of operations has one file of functions and one `.metal` file.
//!
//! The operations of this crate ask whether their tensors go through plans, and [`apply`] runs them. In tests an executor
//! stands in for the device, so that whole networks run through the same calls.
//!
//! Sizes of tiles and threadgroups are bounds that follow from the hardware (SIMD groups of 32 lanes, fragments of 8 x 8
//! values, 32 kB of threadgroup memory). None of them was measured on a Mac.

mod affine;
mod apply;
mod attention;
mod conv;
mod dense;
#[cfg(all(feature = "metal", target_os = "macos"))]
mod device;
mod executor;
mod norm;
#[cfg(test)]
#[cfg(any(target_os = "linux", all(feature = "metal", target_os = "macos")))]
mod operations;
mod pointwise;
/// Runs the plans of tests: on this machine's device, else in the simulator.
#[cfg(test)]
#[cfg(any(target_os = "linux", all(feature = "metal", target_os = "macos")))]
#[cfg_attr(target_os = "linux", path = "metal/simulator.rs")]
#[cfg_attr(target_os = "macos", path = "metal/on_device.rs")]
mod runner;
#[cfg(test)]
#[cfg(any(target_os = "linux", all(feature = "metal", target_os = "macos")))]
mod values;

pub use affine::{AffineShape, affine_matmul, affine_rows};
pub use apply::apply;
pub(crate) use attention::attend;
pub use attention::{AttentionShape, MAX_HEAD_DIM, attention, key_ranges};
pub(crate) use conv::convolve;
pub use conv::{ConvShape, conv};
pub use dense::{DenseShape, dense_matmul, dense_rows};
#[doc(hidden)]
pub use executor::Executor;
pub(crate) use executor::{runs_on, with_executor};
pub use norm::{HeadNorm, norm_rope, pixel_norm, rms_norm};
pub use pointwise::swiglu;

use crate::dtype::FloatType;

/// Metal source, compiled at the first use of one of its kernels.
#[derive(Debug, PartialEq, Eq)]
pub struct KernelSource {
    /// Name in errors and as key of the cache of compiled sources.
    pub name: &'static str,
    /// The text.
    pub text: &'static str,
}

/// One dispatch of one kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelPlan {
    /// The source of the kernel.
    pub source: &'static KernelSource,
    /// Host name of the kernel.
    pub kernel: String,
    /// Values of `[[function_constant(i)]]`, for `i` from 0.
    pub constants: Vec<u16>,
    /// Threadgroups of the grid.
    pub groups: [usize; 3],
    /// Threads of a threadgroup.
    pub threads: [usize; 3],
    /// Arguments in the order of their buffer slots.
    pub args: Vec<KernelArg>,
}

impl KernelPlan {
    /// Number of values of the output, and their dtype.
    pub fn output(&self) -> (usize, FloatType) {
        let output = |arg: &KernelArg| {
            if let KernelArg::Output(len, float) = arg { Some((*len, *float)) } else { None }
        };
        self.args.iter().find_map(output).unwrap_or((0, FloatType::F32))
    }
}

/// One argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum KernelArg {
    /// The input of this index, contiguous; the functions that make plans number them.
    Input(usize),
    /// The input of this index, with strides that other arguments give.
    Strided(usize),
    /// The output: this many values of this dtype.
    Output(usize, FloatType),
    /// No buffer: the kernel does not read this slot with the plan's constants.
    Unused,
    /// A number by value.
    U32(u32),
    /// Numbers by value; the kernel reads as many as it needs.
    U32s([u32; 4]),
    /// A number by value.
    F32(f32),
}

/// The name of a dtype in a kernel's host name.
fn type_name(float: FloatType) -> &'static str {
    match float {
        FloatType::F32 => "f32",
        FloatType::F16 => "f16",
        FloatType::BF16 => "bf16",
    }
}

/// Sizes are passed as `uint`; shapes that do not fit are refused when weights are loaded.
fn size(n: usize) -> KernelArg {
    KernelArg::U32(u32::try_from(n).expect("sizes of tensors on a device are below 2^32"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCES: [&KernelSource; 6] = [
        &affine::SOURCE,
        &attention::SOURCE,
        &conv::SOURCE,
        &dense::SOURCE,
        &norm::SOURCE,
        &pointwise::SOURCE,
    ];

    /// Finds errors that only Apple's compiler reports: pointers and references without address space, and words that Metal
    /// does not have.
    fn faults(text: &str) -> Vec<String> {
        let code = text.lines().map(|line| line.split("//").next().unwrap_or_default());
        let code: String = code.filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n");
        let mut faults = vec![];
        for statement in code.split([';', '{', '}', ',', '(', ')']) {
            let words: Vec<&str> = statement.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
            let is_type = |w: &str| {
                ["uint", "uchar", "ushort", "int", "float", "half", "bfloat", "bool", "T", "S"].contains(&w)
            };
            let declares = statement.split(['*', '&']).rev().skip(1).any(|before| {
                before.trim_end().rsplit(|c: char| !c.is_alphanumeric()).next().is_some_and(is_type)
            });
            let spaces = ["device", "constant", "thread", "threadgroup"];
            if declares && !words.iter().any(|w| spaces.contains(w)) {
                faults.push(format!("no address space: {}", statement.trim()));
            }
            for word in ["double", "static", "std", "virtual", "new", "goto", "throw"] {
                if words.contains(&word) {
                    faults.push(format!("{word}: {}", statement.trim()));
                }
            }
        }
        faults
    }

    #[test]
    fn sources_have_address_spaces_and_no_foreign_words() {
        for source in SOURCES {
            assert_eq!(faults(source.text), Vec::<String>::new(), "{}", source.name);
        }
        let wrong = "inline void f(const uchar* p) { static uint n; float& y = x; thread float& z = x; }";
        assert_eq!(faults(wrong).len(), 3, "{:?}", faults(wrong));
    }
}
