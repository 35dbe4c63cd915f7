//! `lance-mm eval parity`: two checkpoints on the same questions.

mod tables;

use anyhow::Result;
use lance_mm::Checkpoint;
use lance_mm::tensor::ActivationPrecision;
use lance_mm_eval::{Continuation, DataInfo, ModelInfo, ParityOptions, parity};

use super::data::CompareArgs;
use super::result;
use crate::model::{self, Model};
use crate::progress;

const EXAMPLES: &str = "\
Examples:
  lance-mm eval parity ./Lance-3B-bf16 ./Lance-3B-AWQ-INT4 --data questions.jsonl
  lance-mm eval parity tests/fixtures/nano-bf16 nano --data held-out.jsonl --given --leave-out compare,lookup
  lance-mm eval parity A B --data questions.jsonl --no-answers --json parity.json --html parity.html
  lance-mm eval parity nano nano --data questions.jsonl --f32-reference";

/// Compare a checkpoint with its reference on the same questions.
///
/// The reference's greedy answer (or the data's) is teacher-forced in both models, and logits are compared at
/// every token; then each answers on its own.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    compare: CompareArgs,
    /// Compare logits along the data's answers instead of the reference's own.
    #[arg(long)]
    given: bool,
    /// Compare logits only; the models do not answer on their own.
    #[arg(long)]
    no_answers: bool,
    /// Round dequantized weights to bf16 as `mx.dequantize` does, to compare with numbers measured on dequantized
    /// weights.
    #[arg(long)]
    mlx_rounding: bool,
    /// Activations of the reference in f32, slow and exact. With one checkpoint as reference and candidate: the
    /// cost of rounding activations.
    #[arg(long, conflicts_with = "mlx_rounding")]
    f32_reference: bool,
    /// Precision of activations in bf16 matmuls and attention: bf16 (fast), split (two bf16 terms, near exact) or
    /// f32. A reference in f32 stays in f32.
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
    let on_device = |checkpoint: Checkpoint| checkpoint.with_device(&device);
    let load = |name: &str, how: &dyn Fn(Checkpoint) -> Checkpoint, note: &str| -> Result<Model> {
        let model = model::load_as(Some(name), hints, |checkpoint| on_device(how(checkpoint)))?;
        Ok(Model { name: model.name + note, ..model })
    };
    let rounded = |checkpoint: Checkpoint| checkpoint.with_activations(args.activations);
    let candidate = |name: &str| {
        if args.mlx_rounding {
            load(name, &|checkpoint| rounded(checkpoint.with_mlx_rounding()), " (MLX rounding)")
        } else {
            load(name, &rounded, "")
        }
    };
    let reference = |name: &str| {
        if args.f32_reference {
            load(name, &Checkpoint::with_f32_activations, " (activations in f32)")
        } else {
            candidate(name)
        }
    };
    let [reference, candidate] = args.compare.models(reference, candidate)?;
    let report = progress::with("questions", hints, |progress| {
        parity(&reference.lance, &candidate.lance, &data, &options, progress)
    })?;
    let models = [&reference, &candidate].map(|model| ModelInfo::of(&model.lance, &model.name));
    let tokens = report.all.logits.map_or(0, |logits| logits.positions);
    let document = tables::document(&models, &report);
    result::show(
        "eval parity",
        &models,
        DataInfo::of(&data, tokens)?,
        &report,
        &document,
        &args.compare.output,
    )
}
