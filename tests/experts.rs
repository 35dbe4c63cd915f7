//! Both experts in one sequence, against the original: text and markers on UND, latents on GEN.

use candle_core::{Device, Tensor};
use lance_mm::models::{Config, Cursor, Experts, Grid, LatentLayers, Llm, NoiseBlock, Segment, Sequence};
use lance_mm::tensor::{ActivationPrecision, Weights};

use crate::support::{Case, fixtures};

/// A picture of 4 x 3 latents after 51 rows of text, as the original packs it for its first step.
const TEXT: usize = 51;
const GRID: Grid = Grid { t: 1, h: 4, w: 3 };

fn checkpoint() -> (Config, Weights) {
    let dir = fixtures("generation/ckpt/mlx");
    let config = Config::from_json(&std::fs::read(dir.join("config.json")).unwrap()).unwrap();
    (config, Weights::open_in(&dir, "model").unwrap().with_activation_precision(ActivationPrecision::Split))
}

fn llm() -> Llm {
    let (config, weights) = checkpoint();
    Llm::load(&config, &weights, Experts::Both).unwrap()
}

fn flat(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn a_step_of_generation_equals_the_original_by_named_tensors() {
    let llm = llm();
    let case = Case::open("generation", "t2i_nocfg");
    let ids = case.u32s("token_ids");
    let segments = [Segment::Text(ids[..TEXT].to_vec()), Segment::Noise(GRID)];
    let sequence = Sequence::new(&segments, &llm.config().layout(), Cursor::default());
    // The recorded sequence ends with a text token that nothing reads.
    let rows = sequence.len();
    assert_eq!(sequence.ids(), &ids[..rows]);
    let positions = case.u32s("position_ids");
    for (axis, found) in sequence.positions().iter().enumerate() {
        assert_eq!(found, &positions[axis * ids.len()..][..rows], "axis {axis}");
    }

    let d = llm.config().hidden_size;
    let embeds = case.f32s("embeds_step0");
    let x = Tensor::from_slice(&embeds[..rows * d], (rows, d), &Device::Cpu).unwrap();
    let mut cache = llm.cache();
    let hidden = llm.forward(&x, &sequence, &mut cache).unwrap();
    for layer in 0..llm.config().num_hidden_layers {
        for (name, part) in [("k", cache.keys(layer)), ("v", cache.values(layer))] {
            // (G, rows, D) -> (rows, G, D), text rows only
            let part = part.unwrap().unwrap().narrow(1, 0, TEXT).unwrap().transpose(0, 1).unwrap();
            case.compare(&format!("cache_cond.{layer}.{name}"), &flat(&part));
        }
    }
    let mut normed = flat(&llm.norm(&hidden, &sequence).unwrap());
    normed.extend(&case.f32s("hidden_step0")[rows * d..]);
    case.compare("hidden_step0", &normed);
}

#[test]
fn a_prefix_in_the_cache_changes_nothing() {
    let llm = llm();
    let case = Case::open("generation", "t2i_nocfg");
    let ids = case.u32s("token_ids");
    let d = llm.config().hidden_size;
    let embeds = case.f32s("embeds_step0");
    let x = |rows: std::ops::Range<usize>| {
        Tensor::from_slice(&embeds[rows.start * d..rows.end * d], (rows.len(), d), &Device::Cpu).unwrap()
    };
    let mut cache = llm.cache();
    let layout = llm.config().layout();
    let prefix = Sequence::new(&[Segment::Text(ids[..TEXT].to_vec())], &layout, Cursor::default());
    llm.forward(&x(0..TEXT), &prefix, &mut cache).unwrap();
    let noise = Sequence::new(&[Segment::Noise(GRID)], &layout, prefix.end());
    let hidden = llm.forward(&x(TEXT..TEXT + noise.len()), &noise, &mut cache).unwrap();
    let recorded = case.f32s("hidden_step0");
    let found = flat(&llm.norm(&hidden, &noise).unwrap());
    let expected = &recorded[TEXT * d..(TEXT + noise.len()) * d];
    lance_mm::tensor::testing::assert_close("hidden_step0", &found, expected, 2e-4);
}

#[test]
fn every_recorded_velocity_follows_from_its_latents() {
    let (llm, (config, weights)) = (llm(), checkpoint());
    let latents = LatentLayers::load(&config, &weights).unwrap();
    let case = Case::open("generation", "t2i_nocfg");
    let (times, ids) = (case.f32s("timesteps"), case.u32s("token_ids"));
    case.compare("time_embed", &flat(&latents.time_embedder(&times).unwrap()));
    case.compare("time_embed_zero", &flat(&latents.time_embedder(&[0.0]).unwrap()));
    let places: Vec<u32> = latents.positions(GRID).unwrap().iter().map(|p| *p as u32).collect();
    assert_eq!(places, case.u32s("latent_pos_ids"));

    let prefix = Sequence::new(&[Segment::Text(ids[..TEXT].to_vec())], &config.layout(), Cursor::default());
    let mut cache = llm.cache();
    llm.forward(&llm.embed(&prefix, &[]).unwrap(), &prefix, &mut cache).unwrap();
    let noise = Sequence::new(&[Segment::Noise(GRID)], &config.layout(), prefix.end());
    let n = GRID.count() * 48;
    let states = case.f32s("x_steps");
    let mut velocities = Vec::new();
    for (x, t) in states.chunks_exact(n).zip(&times) {
        let x = Tensor::from_slice(x, (GRID.count(), 48), &Device::Cpu).unwrap();
        let block = NoiseBlock { latents: &x, grid: GRID, times: &[*t], sequence: &noise };
        velocities.extend(flat(&latents.velocity(&llm, &block, &mut cache).unwrap()));
    }
    case.compare("v_cond", &velocities);
}
