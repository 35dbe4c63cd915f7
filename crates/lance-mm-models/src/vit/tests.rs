use candle_core::Device;
use lance_mm_tensor::testing::{assert_close, seeded};

use super::*;
use crate::testing::{config, vit_tensors, weights};

fn vit() -> Vit {
    let config = config();
    Vit::load(&config.vision, &weights(&vit_tensors(&config))).unwrap()
}

fn patches(n: usize, seed: u64) -> Tensor {
    Tensor::from_vec(seeded(n * 1176, seed), (n, 1176), &Device::Cpu).unwrap()
}

fn flat(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

fn grid(t: usize, h: usize, w: usize) -> Grid {
    Grid { t, h, w }
}

#[test]
fn windows_are_cut_at_the_edges() {
    // 5 x 5 groups: windows of 4x4, 4x1, 1x4 and 1x1.
    let layout = VitLayout::new(&config().vision, &[grid(1, 10, 10)]);
    assert_eq!(layout.cu_window_seqlens, [0, 64, 80, 96, 100]);
    assert_eq!(layout.cu_seqlens, [0, 100]);
    assert_eq!(layout.window_index[..8], [0, 1, 2, 3, 5, 6, 7, 8]);
    assert_eq!(layout.window_index[16..], [4, 9, 14, 19, 20, 21, 22, 23, 24]);
    let inverse = layout.inverse_index();
    assert!((0..25).all(|group| layout.window_index[inverse[group as usize] as usize] == group));
}

#[test]
fn damage_of_any_tensor_is_an_error_of_the_features() {
    let config = config();
    let sound = vit_tensors(&config);
    for (i, (name, ..)) in sound.iter().enumerate() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut tensors = sound.clone();
            tensors[i].2.fill(bad);
            let vit = Vit::load(&config.vision, &weights(&tensors)).unwrap();
            let features = vit.forward(&patches(16, 1), &[grid(1, 4, 4)]);
            assert!(matches!(features, Err(Error::NotFinite { .. })), "{name} {bad}: {features:?}");
        }
    }
}

#[test]
fn pictures_and_frame_pairs_do_not_see_each_other() {
    let vit = vit();
    let grids = [grid(2, 4, 6), grid(1, 2, 10), grid(1, 10, 2)];
    let x = patches(48 + 20 + 20, 1);
    let together = flat(&vit.forward(&x, &grids).unwrap());
    let mut apart = Vec::new();
    for (start, n, g) in
        [(0, 24, grid(1, 4, 6)), (24, 24, grid(1, 4, 6)), (48, 20, grids[1]), (68, 20, grids[2])]
    {
        apart.extend(flat(&vit.forward(&x.narrow(0, start, n).unwrap(), &[g]).unwrap()));
    }
    assert_close("apart", &together, &apart, 2e-5);
    let probed = vit.forward_probed(&x, &grids, &mut |_, _| Ok(())).unwrap();
    assert_close("one run", &together, &flat(&probed), 2e-5);
}

#[test]
fn a_stop_flag_ends_a_pass_between_blocks() {
    let (vit, grids, x) = (vit(), [grid(1, 4, 6)], patches(24, 1));
    let (stop, mut names) = (StopFlag::new(), Vec::new());
    let same = vit.forward_with_stop(&x, &grids, &stop).unwrap();
    assert_eq!(flat(&same), flat(&vit.forward(&x, &grids).unwrap()));
    let mut probe = |name: std::fmt::Arguments<'_>, _: &Tensor| {
        names.push(name.to_string());
        if names.len() == 2 {
            stop.stop();
        }
        Ok(())
    };
    let mut monitor = Monitor { probe: Some(&mut probe), stop: Some(&stop) };
    assert!(matches!(vit.run(&x, &grids, &mut monitor), Err(Error::Stopped)));
    assert_eq!(names.last().unwrap(), "blocks.0");
    assert!(matches!(vit.forward_with_stop(&x, &grids, &stop), Err(Error::Stopped)));
}

#[test]
fn long_videos_are_cut_between_frame_pairs() {
    let cut = runs(&[grid(40, 32, 32), grid(1, 200, 200), grid(1, 2, 2)]);
    assert_eq!(cut.len(), 5);
    assert_eq!(cut[0], [grid(16, 32, 32)]);
    assert_eq!(cut[2], [grid(8, 32, 32)]);
    assert_eq!((cut[3].as_slice(), cut[4].as_slice()), (&[grid(1, 200, 200)][..], &[grid(1, 2, 2)][..]));
    assert_eq!(runs(&[grid(1, 2, 2), grid(1, 4, 4)]).len(), 1);
}

#[test]
fn a_patch_weight_with_channels_last_is_the_same_network() {
    let config = config();
    let mut tensors = vit_tensors(&config);
    let x = patches(4, 2);
    let expected = flat(&vit().forward(&x, &[grid(1, 2, 2)]).unwrap());
    let (_, shape, values) = tensors.iter_mut().find(|(name, _, _)| name.starts_with("patch_embed")).unwrap();
    let (rows, inner) = (shape[0], 2 * 14 * 14);
    let last: Vec<f32> = (0..rows * inner * 3)
        .map(|i| {
            let (row, rest) = (i / (inner * 3), i % (inner * 3));
            values[row * inner * 3 + (rest % 3) * inner + rest / 3]
        })
        .collect();
    (*shape, *values) = (vec![rows, 2, 14, 14, 3], last);
    let moved = Vit::load(&config.vision, &weights(&tensors)).unwrap();
    assert_close("channels last", &flat(&moved.forward(&x, &[grid(1, 2, 2)]).unwrap()), &expected, 1e-6);
}

#[test]
fn a_patch_weight_of_whole_numbers_is_refused_in_either_order() {
    let config = config();
    let (c, t, p) = (3, 2, 14);
    for shape in [vec![config.vision.hidden_size, c, t, p, p], vec![config.vision.hidden_size, t, p, p, c]] {
        let dir = tempfile::tempdir().unwrap();
        let bytes = vec![0; 2 * shape.iter().product::<usize>()];
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::I16, shape, &bytes).unwrap();
        let path = dir.path().join("vit.safetensors");
        let tensors = [("patch_embed.proj.weight", view)];
        safetensors::serialize_to_file(tensors, None, &path).unwrap();
        let error = Vit::load(&config.vision, &Weights::open(&[path]).unwrap()).err().unwrap().to_string();
        assert!(error.contains("patch_embed.proj.weight") && error.contains("I16"), "{error}");
    }
}

#[test]
fn patches_must_fit_their_grids() {
    let vit = vit();
    let x = patches(8, 1);
    for grids in [vec![], vec![grid(1, 2, 2)], vec![grid(1, 1, 8)], vec![grid(0, 2, 4)], vec![grid(1, 8, 1)]]
    {
        assert!(vit.forward(&x, &grids).is_err(), "{grids:?}");
    }
    let narrow = x.narrow(1, 0, 1000).unwrap();
    let text = vit.forward(&narrow, &[grid(1, 2, 4)]).unwrap_err().to_string();
    assert!(text.contains("patches: expected (8, 1176) for the grids, found [8, 1000]"), "{text}");
}

#[test]
fn missing_and_unknown_tensors_are_named() {
    let config = config();
    let mut tensors = vit_tensors(&config);
    tensors.retain(|(name, _, _)| name != "merger.ln_q.weight");
    let text = Vit::load(&config.vision, &weights(&tensors)).err().unwrap().to_string();
    assert!(text.contains("merger.ln_q.weight: missing, expected [16]"), "{text}");
    let mut tensors = vit_tensors(&config);
    tensors.push(("blocks.2.norm1.weight".into(), vec![16], vec![1.0; 16]));
    let text = Vit::load(&config.vision, &weights(&tensors)).err().unwrap().to_string();
    assert!(text.contains("blocks.2.norm1.weight: no part of the model"), "{text}");
}
