use lance_mm_quant::RoundingOptions;
use lance_mm_quant::testing::correlated;

use super::*;
use crate::names::FusionGroup;
use crate::options::Scaling;
use crate::testing::{HEADS, expert_weights, layer_activations};

fn weights(experts: &[Expert]) -> LayerWeights {
    let experts = experts.iter().enumerate().map(|(i, e)| expert_weights(*e, 1 + i as u64)).collect();
    LayerWeights { layer: 3, heads: HEADS, experts }
}

fn four_bits(_: Expert, _: Proj) -> Option<Scheme> {
    Scheme::affine(4, 32).ok()
}

fn bytes(result: &LayerResult) -> Vec<u8> {
    let mut out = Vec::new();
    for expert in &result.experts {
        out.extend(expert.input_layernorm.iter().flat_map(|v| v.to_le_bytes()));
        for linear in &expert.linears {
            match &linear.weight {
                LinearWeight::Packed(w) => {
                    out.extend([w.word_bytes(), w.scale_bytes(), w.bias_bytes()].concat());
                }
                LinearWeight::Dense(w) => out.extend(w.values().iter().flat_map(|v| v.to_le_bytes())),
            }
        }
    }
    out
}

#[test]
fn the_result_does_not_depend_on_the_number_of_threads() {
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let rows = vec![Some(layer_activations(5)), None];
            quantize_layer(weights(&[Expert::Und, Expert::Gen]), rows, &four_bits, &RecipeSteps::default())
                .unwrap()
        })
    };
    let (one, two) = (run(1), run(2));
    assert_eq!(bytes(&one), bytes(&two));
    assert_eq!(format!("{:?}", one.fusions), format!("{:?}", two.fusions));
}

#[test]
fn every_step_can_be_left_out_and_none_makes_it_worse() {
    let total = |steps: &RecipeSteps| -> f64 {
        let result =
            quantize_layer(weights(&[Expert::Und]), vec![Some(layer_activations(5))], &four_bits, steps)
                .unwrap();
        result.experts[0].linears.iter().map(|l| l.report.as_ref().unwrap().final_error).sum()
    };
    let default = || RecipeSteps::default().rounding;
    let with = |rounding| RecipeSteps { rounding, ..RecipeSteps::default() };
    let recipes = [
        RecipeSteps::rtn(),
        RecipeSteps { scaling: Scaling::Searched, v_o: true, up_down: true, ..RecipeSteps::rtn() },
        with(RoundingOptions { feedback: 0, ..default() }),
        with(RoundingOptions { dampings: vec![], ..default() }),
        RecipeSteps::default(),
    ];
    let totals: Vec<f64> = recipes.iter().map(total).collect();
    assert!(totals.windows(2).all(|two| two[1] < two[0]), "{totals:?}");
    assert!(total(&RecipeSteps::lance_mlx()).is_finite());
}

#[test]
fn reports_name_what_was_done() {
    let rows = vec![Some(layer_activations(5)), Some(layer_activations(7))];
    let result =
        quantize_layer(weights(&[Expert::Und, Expert::Gen]), rows, &four_bits, &RecipeSteps::default())
            .unwrap();
    let names: Vec<String> = result.fusions.iter().map(|p| p.producers.join(" ")).collect();
    assert_eq!(
        names,
        [
            "layers.3.input_layernorm",
            "layers.3.input_layernorm_moe_gen",
            "layers.3.self_attn.v_proj layers.3.self_attn.v_proj_moe_gen",
            "layers.3.post_attention_layernorm",
            "layers.3.post_attention_layernorm_moe_gen",
            "layers.3.mlp.up_proj",
            "layers.3.mlp_moe_gen.up_proj",
        ]
    );
    let report = result.experts[1].linears[3].report.as_ref().unwrap();
    assert_eq!((report.name.as_str(), report.bits), ("layers.3.self_attn.o_proj_moe_gen", 4));
    assert!(report.final_error <= report.scaled && report.trials.len() == 6);
    let json = serde_json::to_value(report).unwrap();
    assert!(json["final"].is_number() && json["trials"][1]["method"] == "clip_refit", "{json}");
}

#[test]
fn without_inputs_only_the_shared_scale_reaches_an_expert() {
    let rows = vec![Some(layer_activations(5)), None];
    let result =
        quantize_layer(weights(&[Expert::Und, Expert::Gen]), rows, &four_bits, &RecipeSteps::default())
            .unwrap();
    let before = expert_weights(Expert::Gen, 2);
    let after = &result.experts[1];
    assert_eq!(after.input_layernorm, before.input_layernorm);
    assert_eq!(after.post_attention_layernorm, before.post_attention_layernorm);
    let shared = result.fusions.iter().find(|p| p.group == FusionGroup::VO).unwrap();
    assert_eq!(after.v_bias != before.v_bias, shared.accepted);
}

#[test]
fn linears_without_a_scheme_stay_dense() {
    let scheme = |_, proj| (proj != Proj::DownProj).then(|| Scheme::affine(3, 32).unwrap());
    let result = quantize_layer(
        weights(&[Expert::Und]),
        vec![Some(layer_activations(5))],
        &scheme,
        &RecipeSteps::default(),
    )
    .unwrap();
    assert!(matches!(result.experts[0].linears[6].weight, LinearWeight::Dense(_)));
    assert!(result.fusions.iter().all(|p| p.group != FusionGroup::UpDown));
}

#[test]
fn errors_name_the_layer_and_the_linear() {
    let run = |rows, scheme: &dyn Fn(Expert, Proj) -> Option<Scheme>| {
        quantize_layer(weights(&[Expert::Und]), vec![Some(rows)], scheme, &RecipeSteps::default())
            .err()
            .unwrap()
            .to_string()
    };
    let mut rows = layer_activations(5);
    rows.down = correlated(8, 4, 32, 1);
    assert_eq!(run(rows, &four_bits), "layers.3.mlp.gated: expected rows of 96, found 32");
    let wide = |_, _| Scheme::affine(4, 64).ok();
    assert_eq!(
        run(layer_activations(5), &wide),
        "layers.3.mlp.down_proj: expected columns in groups of 64, found 96 columns"
    );
}

#[test]
fn errors_in_other_schemes_are_those_of_quantizing_in_them() {
    let scheme = |bits| Scheme::affine(bits, 32).unwrap();
    let wide = Scheme::affine(4, 128).unwrap();
    let rows = || vec![Some(layer_activations(5))];
    let mut steps = RecipeSteps { scaling: Scaling::Off, ..RecipeSteps::default() };
    steps.rounding.dampings = vec![0.1];
    let measured =
        measure_layer(weights(&[Expert::Und]), rows(), &four_bits, &steps, &[scheme(2), wide, scheme(6)])
            .unwrap();
    for bits in [2, 6] {
        let found =
            quantize_layer(weights(&[Expert::Und]), rows(), &|_, _| Some(scheme(bits)), &steps).unwrap();
        for (a, b) in measured.experts[0].linears.iter().zip(&found.experts[0].linears) {
            let at = if bits == 2 { 0 } else { 2 };
            let ratio = a.errors[at].unwrap() / b.report.as_ref().unwrap().final_error;
            assert!((1.0..1.3).contains(&ratio), "{} {bits}: {ratio}", a.name);
            assert_eq!(a.errors[1], None, "{}: groups of 128", a.name);
        }
    }
    let unknown = measure_layer(weights(&[Expert::Und]), vec![None], &four_bits, &steps, &[wide]).unwrap();
    assert!(unknown.experts[0].linears.iter().all(|l| l.errors.is_empty()));
}

#[test]
fn later_layers_make_good_what_earlier_ones_changed() {
    let rows = layer_activations(5);
    // What was recorded, with a part of every channel leaking into the next.
    let leak = |rows: &Activations| {
        let k = rows.n_cols();
        let change =
            |v: &[f32]| (0..v.len()).map(|i| v[i] + 0.2 * v[i / k * k + (i + 1) % k]).collect::<Vec<f32>>();
        Activations::new("x", change(rows.search()), &change(rows.held_out()), k).unwrap()
    };
    let changed = [&rows.qkv, &rows.o, &rows.gate_up, &rows.down].map(leak);
    let steps = RecipeSteps { scaling: Scaling::Off, ..RecipeSteps::default() };
    let mut layer =
        LayerQuantizer::new(weights(&[Expert::Und]), vec![Some(rows.clone())], &four_bits, &steps).unwrap();
    for rows in changed {
        let done = layer.experts().next().unwrap().linears.len();
        assert_eq!(Proj::ALL.get(done).map(|proj| proj.input()), layer.next());
        layer.round(vec![Some(rows)]).unwrap();
    }
    for linear in &layer.finish().experts[0].linears {
        let drift = linear.report.as_ref().unwrap().drift.as_ref().unwrap();
        assert!(drift.after < 0.5 * drift.before, "{}: {drift:?}", linear.name);
        assert!(drift.after < drift.rounded && drift.rounded < drift.before, "{}: {drift:?}", linear.name);
    }
    let mut layer =
        LayerQuantizer::new(weights(&[Expert::Und]), vec![Some(rows)], &four_bits, &steps).unwrap();
    let error = layer.round(vec![Some(correlated(9, 9, 64, 1))]).unwrap_err().to_string();
    assert!(error.starts_with("layers.3.self_attn.q_proj: expected (150, 50, 64)"), "{error}");
}
