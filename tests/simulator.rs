//! Runs plans of a Metal device on the CPU.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use lance_mm::tensor::metal::{KernelArg, KernelPlan};
use lance_mm::tensor::testing::Executor;
use msl_sim::{Build, Launch, Program};

/// How often each kernel ran.
pub(crate) type Runs = Rc<RefCell<BTreeMap<String, usize>>>;

/// Runs plans in the simulator, lanes shuffled, and counts them.
pub(crate) fn simulator(runs: &Runs) -> Rc<Executor> {
    let (programs, runs) = (RefCell::new(HashMap::<&str, Program>::new()), runs.clone());
    Rc::new(move |plan, inputs| {
        *runs.borrow_mut().entry(plan.kernel.clone()).or_default() += 1;
        let mut programs = programs.borrow_mut();
        let program = programs.entry(plan.source.name).or_insert_with(|| {
            Program::from_source(plan.source.text, Build::Plain).expect("the project's own kernels compile")
        });
        run(program, plan, inputs).map_err(|e| format!("{e:#}"))
    })
}

fn run(
    program: &Program,
    plan: &KernelPlan,
    inputs: &[Vec<u8>],
) -> Result<Vec<u8>, impl std::fmt::Display + use<>> {
    let sizes = |sizes: [usize; 3]| sizes.map(|n| n as u32);
    let mut launch = Launch::new(&plan.kernel, sizes(plan.groups), sizes(plan.threads)).order(5);
    launch.constants = (0..).zip(plan.constants.iter().map(|c| c.to_le_bytes().to_vec())).collect();
    let mut inputs = inputs.to_vec();
    let (len, float) = plan.output();
    let mut output = vec![0xff; len * float.size()];
    let mut inputs: Vec<Option<&mut Vec<u8>>> = inputs.iter_mut().map(Some).collect();
    let mut result = Some(&mut output);
    for (slot, arg) in (0..).zip(&plan.args) {
        launch = launch.arg(match arg {
            KernelArg::Input(i) | KernelArg::Strided(i) => {
                msl_sim::Arg::Buffer(slot, inputs[*i].take().expect("an input is bound once"))
            }
            KernelArg::Output(..) => msl_sim::Arg::Buffer(slot, result.take().expect("one output")),
            KernelArg::Unused => msl_sim::Arg::Bytes(slot, vec![]),
            KernelArg::U32s(n) => msl_sim::Arg::Bytes(slot, n.iter().flat_map(|n| n.to_le_bytes()).collect()),
            KernelArg::U32(n) => msl_sim::Arg::Bytes(slot, n.to_le_bytes().to_vec()),
            KernelArg::F32(n) => msl_sim::Arg::Bytes(slot, n.to_le_bytes().to_vec()),
        });
    }
    program.run(launch).map(|_| output)
}
