//! Runs plans on the CPU.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, LazyLock, Mutex};

use candle_core::Device;
pub(crate) use msl_sim::Build;
use msl_sim::{Launch, Program};

use super::{KernelArg, KernelPlan};

/// Lane orders every kernel is run in: ascending, descending, two shuffles.
pub(crate) const ORDERS: [u32; 4] = [0, 1, 2, 3];

type Programs = Mutex<HashMap<(String, bool), Arc<Program>>>;

/// A source is compiled once a test process and kind of build.
fn program(text: &str, build: Build) -> Arc<Program> {
    static PROGRAMS: LazyLock<Programs> = LazyLock::new(Mutex::default);
    let mut programs = PROGRAMS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let key = (text.to_owned(), build == Build::RaceCheck);
    let compile = || Arc::new(Program::from_source(text, build).expect("the project's own kernels compile"));
    Arc::clone(programs.entry(key).or_insert_with(compile))
}

/// The bytes of a plan's output.
pub(crate) fn run(plan: &KernelPlan, inputs: &[Vec<u8>], order: u32) -> anyhow::Result<Vec<u8>> {
    run_source(plan.source.text, plan, inputs, order, Build::Plain)
}

/// Runs operations as on a device, whose place the simulator takes.
pub(crate) fn on_device<T>(work: impl FnOnce(&Device) -> T) -> T {
    let executor = |plan: &KernelPlan, inputs: &[Vec<u8>]| run(plan, inputs, 3).map_err(|e| format!("{e:#}"));
    crate::testing::with_executor(Rc::new(executor), || work(&Device::Cpu))
}

/// A run in which unordered accesses of two lanes to one place are errors.
pub(crate) fn check_races(plan: &KernelPlan, inputs: &[Vec<u8>]) -> anyhow::Result<()> {
    run_source(plan.source.text, plan, inputs, 0, Build::RaceCheck).map(|_| ())
}

/// Runs the plan with other source, such as a broken copy of its own.
pub(crate) fn run_source(
    text: &str,
    plan: &KernelPlan,
    inputs: &[Vec<u8>],
    order: u32,
    build: Build,
) -> anyhow::Result<Vec<u8>> {
    let dim = |d: [usize; 3]| d.map(|n| u32::try_from(n).expect("a grid of a test"));
    let mut launch = Launch::new(&plan.kernel, dim(plan.groups), dim(plan.threads)).order(order);
    launch.constants = (0..).zip(plan.constants.iter().map(|c| c.to_le_bytes().to_vec())).collect();
    let mut buffers: Vec<Vec<u8>> = inputs.to_vec();
    // Not a number in every type, so that a value left out shows.
    let (len, float) = plan.output();
    let mut output = vec![0xff; len * float.size()];
    let mut inputs: Vec<Option<&mut Vec<u8>>> = buffers.iter_mut().map(Some).collect();
    let mut output_slot = Some(&mut output);
    for (slot, arg) in (0..).zip(&plan.args) {
        launch = launch.arg(match arg {
            KernelArg::Input(i) | KernelArg::Strided(i) => {
                msl_sim::Arg::Buffer(slot, inputs[*i].take().expect("an input is bound once"))
            }
            KernelArg::Output(..) => msl_sim::Arg::Buffer(slot, output_slot.take().expect("one output")),
            // So short that a kernel that reads it is noticed.
            KernelArg::Unused => msl_sim::Arg::Bytes(slot, vec![]),
            KernelArg::U32s(n) => msl_sim::Arg::Bytes(slot, n.iter().flat_map(|n| n.to_le_bytes()).collect()),
            KernelArg::U32(n) => msl_sim::Arg::Bytes(slot, n.to_le_bytes().to_vec()),
            KernelArg::F32(n) => msl_sim::Arg::Bytes(slot, n.to_le_bytes().to_vec()),
        });
    }
    program(text, build).run(launch)?;
    Ok(output)
}
