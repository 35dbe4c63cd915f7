use candle_core::{DType, Device};
use lance_mm_tensor::testing::{assert_close, seeded};

use super::*;
use crate::sequence::{Cursor, Segment};
use crate::testing::{config, latent_tensors, llm_tensors, weights};
use crate::{Experts, Llm};

const GRID: Grid = Grid { t: 1, h: 3, w: 4 };

fn layers() -> LatentLayers {
    let config = config();
    LatentLayers::load(&config, &weights(&latent_tensors(&config))).unwrap()
}

fn latents(n: usize, seed: u64) -> Tensor {
    Tensor::from_vec(seeded(n * CHANNELS, seed), (n, CHANNELS), &Device::Cpu).unwrap()
}

fn flat(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn rows_are_projection_time_and_place_added() {
    let config = config();
    let tensors = latent_tensors(&config);
    let of = |name: &str| tensors.iter().find(|(n, _, _)| n == name).unwrap().2.clone();
    let (weight, bias, table) =
        (of("vae_in_proj.vae2llm.weight"), of("vae_in_proj.vae2llm.bias"), of("latent_pos_embed.pos_embed"));
    let layers = layers();
    let x = latents(GRID.count(), 1);
    let found = flat(&layers.embed(&x, GRID, &[0.25]).unwrap());
    let moment = flat(&layers.time_embedder(&[0.25]).unwrap());
    let (x, d) = (flat(&x), config.hidden_size);
    let mut expected = Vec::new();
    for i in 0..GRID.count() {
        let place = (i / GRID.w) * config.max_latent_size + i % GRID.w;
        for j in 0..d {
            let product: f32 = (0..CHANNELS).map(|k| x[i * CHANNELS + k] * weight[j * CHANNELS + k]).sum();
            expected.push(product + bias[j] + moment[j] + table[place * d + j]);
        }
    }
    assert_close("rows", &found, &expected, 1e-5);
}

#[test]
fn places_go_on_in_the_next_line_and_end_with_the_table() {
    let layers = layers();
    // The toy table has 4 x 4 places.
    assert_eq!(layers.positions(Grid { t: 1, h: 2, w: 2 }).unwrap(), [0, 1, 4, 5]);
    assert_eq!(layers.positions(Grid { t: 1, h: 2, w: 5 }).unwrap(), [0, 1, 2, 3, 4, 4, 5, 6, 7, 8]);
    for grid in [Grid { t: 2, h: 1, w: 1 }, Grid { t: 1, h: 5, w: 1 }, Grid { t: 1, h: 4, w: 5 }] {
        let error = layers.positions(grid).unwrap_err().to_string();
        assert!(error.contains("at most 1 latent frames of 4x4"), "{error}");
    }
}

#[test]
fn each_frame_has_its_own_time() {
    let layers = layers();
    let grid = Grid { t: 1, h: 2, w: 2 };
    let x = latents(4, 2);
    let (early, late) = (layers.embed(&x, grid, &[0.0]).unwrap(), layers.embed(&x, grid, &[1.0]).unwrap());
    let times = layers.time_embedder(&[0.0, 1.0]).unwrap();
    let step = (times.narrow(0, 1, 1).unwrap() - times.narrow(0, 0, 1).unwrap()).unwrap();
    assert_close("time", &flat(&late), &flat(&early.broadcast_add(&step).unwrap()), 1e-5);
    assert!(layers.embed(&x, grid, &[0.0, 1.0]).is_err());
    assert!(layers.embed(&latents(3, 2), grid, &[0.0]).is_err());
}

#[test]
fn a_velocity_sees_the_prefix_and_leaves_the_cache() {
    let config = config();
    let llm = Llm::load(&config, &weights(&llm_tensors(&config)), Experts::Both).unwrap();
    let layers = layers();
    let x = latents(GRID.count(), 3);
    let velocity = |ids: &[u32]| {
        let prefix = Sequence::new(&[Segment::Text(ids.to_vec())], &config.layout(), Cursor::default());
        let mut cache = llm.cache();
        llm.forward(&llm.embed(&prefix, &[]).unwrap(), &prefix, &mut cache).unwrap();
        let noise = Sequence::new(&[Segment::Noise(GRID)], &config.layout(), prefix.end());
        let block = NoiseBlock { latents: &x, grid: GRID, times: &[1.0], sequence: &noise };
        let first = layers.velocity(&llm, &block, &mut cache).unwrap();
        assert_eq!(cache.len(), ids.len());
        let stop = StopFlag::new();
        let second = layers.velocity_with_stop(&llm, &block, &mut cache, &stop).unwrap();
        assert_eq!((first.dims2().unwrap(), flat(&first)), ((GRID.count(), CHANNELS), flat(&second)));
        stop.stop();
        let stopped = layers.velocity_with_stop(&llm, &block, &mut cache, &stop);
        assert!(matches!(stopped, Err(Error::Stopped)));
        assert_eq!(cache.len(), ids.len());
        flat(&first)
    };
    let (difference, _) = lance_mm_tensor::testing::max_error(&velocity(&[1, 2]), &velocity(&[3, 4]));
    assert!(difference > 1e-3, "the prefix does not matter: {difference}");
}

#[test]
fn the_sinusoid_begins_with_cosines() {
    let [zero, one] = [0.0, 1.0].map(time_sinusoid);
    assert_eq!((zero[..128].to_vec(), zero[128..].to_vec()), (vec![1.0; 128], vec![0.0; 128]));
    assert!((one[0] - 1f32.cos()).abs() < 1e-7 && (one[128] - 1f32.sin()).abs() < 1e-7);
}

#[test]
fn a_place_is_frame_row_and_column() {
    // Frame 1, row 2, column 3 of a table of side 4.
    let row = position_row(16 + 2 * 4 + 3, 4, 20);
    assert_eq!(row.len(), 20);
    for (found, expected) in
        [(row[0], 1f32.sin()), (row[6], 2f32.sin()), (row[12], 3f32.sin()), (row[3], 1f32.cos())]
    {
        assert!((found - expected).abs() < 1e-6, "{row:?}");
    }
    // Positions reach 63 and more: they must be exact, which bf16 is not.
    assert_ne!(position_row(62, 64, 2048), position_row(63, 64, 2048));
}

#[test]
fn what_is_missing_is_named() {
    let config = config();
    let mut tensors = latent_tensors(&config);
    tensors.retain(|(name, _, _)| !name.starts_with("llm2vae.weight"));
    let table = tensors.iter_mut().find(|(name, _, _)| name.contains("pos_embed")).unwrap();
    (table.1, table.2) = (vec![17, 32], vec![0.0; 17 * 32]);
    let text = LatentLayers::load(&config, &weights(&tensors)).err().unwrap().to_string();
    assert!(text.contains("llm2vae.weight: missing, expected [48, 32]"), "{text}");
    assert!(text.contains("expected a multiple of 4x4 rows, found 17"), "{text}");
    assert_eq!(layers().time_embedder(&[0.5]).unwrap().dtype(), DType::F32);
}
