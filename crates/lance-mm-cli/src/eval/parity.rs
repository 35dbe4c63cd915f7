//! `lance-mm eval parity`: two checkpoints on the same questions.

mod tables;

use anyhow::Result;
use lance_mm::Checkpoint;
use lance_mm::tensor::ActivationPrecision;
use lance_mm_eval::{Continuation, ModelInfo, ParityOptions, parity};

use super::data::CompareArgs;
use super::progress::Progress;
use super::result::{self, Data};
use crate::model::{self, Model};

const EXAMPLES: &str = "\
Examples:
  lance-mm eval parity ./Lance-3B-bf16 ./Lance-3B-AWQ-INT4 --data questions.jsonl
  lance-mm eval parity tests/fixtures/nano-bf16 nano --data held-out.jsonl --given --leave-out compare,lookup
  lance-mm eval parity A B --data questions.jsonl --no-answers --json parity.json --html parity.html
  lance-mm eval parity nano nano --data questions.jsonl --f32-reference";

/// Compare a checkpoint with its reference on the same questions.
///
/// Both models go through the reference's greedy answer (or the data's), and their logits are compared at
/// every token; then each answers on its own.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    compare: CompareArgs,
    /// Go through the data's answers instead of the reference's own.
    #[arg(long)]
    given: bool,
    /// Compare logits only; the models do not answer on their own.
    #[arg(long)]
    no_answers: bool,
    /// Read quantized matrices as `mx.dequantize` does, rounded to their type, to compare with numbers that were
    /// measured on dequantized weights. Answers are given in f32 otherwise.
    #[arg(long)]
    mlx_rounding: bool,
    /// Multiply the reference's matrices with activations in f32, slow and exact. With the same checkpoint as
    /// reference and candidate: what rounding activations costs.
    #[arg(long, conflicts_with = "mlx_rounding")]
    f32_reference: bool,
    /// What inputs of products with bf16 matrices and of attention count as: `bf16`, as when answering, `split` or
    /// `f32`. A reference in f32 stays in f32.
    #[arg(long, value_name = "bf16|split|f32", default_value_t = ActivationPrecision::Split)]
    activations: ActivationPrecision,
    /// Kinds that a second sum leaves out.
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    leave_out: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let hints = args.compare.output.check()?;
    let device = args.compare.device.open()?;
    let data = args.compare.questions()?;
    let options = ParityOptions {
        asking: args.compare.ask.options(),
        continuation: if args.given { Continuation::Given } else { Continuation::Greedy },
        answers: !args.no_answers,
        leave_out: args.leave_out.clone(),
    };
    let onto = |checkpoint: Checkpoint| checkpoint.with_device(&device);
    let rounded = |checkpoint: Checkpoint| onto(checkpoint.with_activations(args.activations));
    let load = |name: &str| match args.mlx_rounding {
        false => model::load_as(Some(name), hints, rounded),
        true => {
            let model =
                model::load_as(Some(name), hints, |checkpoint| rounded(checkpoint.with_mlx_rounding()))?;
            Ok(Model { name: format!("{} (MLX rounding)", model.name), ..model })
        }
    };
    let exact = |name: &str| match args.f32_reference {
        false => load(name),
        true => {
            let model =
                model::load_as(Some(name), hints, |checkpoint| onto(checkpoint.with_f32_activations()))?;
            Ok(Model { name: format!("{} (activations in f32)", model.name), ..model })
        }
    };
    let [reference, candidate] = args.compare.models(exact, load)?;
    let mut progress = Progress::new("questions", hints);
    let report = parity(&reference.lance, &candidate.lance, &data, &options, &mut |done, all| {
        progress.show(done, all)
    })?;
    drop(progress);
    let models = [&reference, &candidate].map(|model| ModelInfo::of(&model.lance, &model.name));
    let tokens = report.all.logits.map_or(0, |logits| logits.positions);
    let document = tables::document(&models, &report);
    result::show("eval parity", &models, Data::of(&data, tokens)?, &report, &document, &args.compare.output)
}
