use candle_core::Device;
use lance_mm_tensor::testing::{assert_close, seeded};

use super::*;
use crate::testing::{vae_tensors, weights};

const CONFIG: VaeConfig = VaeConfig { encoder_width: 3, decoder_width: 2 };

fn vae() -> Vae {
    Vae::load(&CONFIG, &weights(&vae_tensors(&CONFIG))).unwrap()
}

fn clip(shape: [usize; 4], seed: u64) -> Tensor {
    Tensor::from_vec(seeded(shape.iter().product(), seed), &shape, &Device::Cpu).unwrap()
}

fn flat(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn a_clip_has_as_many_frames_as_its_latents_tell() {
    let vae = vae();
    for (frames, latents) in [(1, 1), (4, 1), (5, 2), (8, 2), (9, 3)] {
        let z = vae.encode(&clip([3, frames, 16, 32], 1)).unwrap();
        assert_eq!(z.dims(), [48, latents, 1, 2], "{frames}");
        assert_eq!(vae.decode(&z).unwrap().dims(), [3, 4 * (latents - 1) + 1, 16, 32]);
    }
}

/// The clamp to [-1, 1] would make -1 of NaN, which is black.
#[test]
fn values_that_are_not_finite_are_errors_wherever_they_come_from() {
    let poisoned = |name: &str, bad: f32| {
        let mut tensors = vae_tensors(&CONFIG);
        let (_, _, values) = tensors.iter_mut().find(|(tensor, ..)| tensor == name).unwrap();
        // All of it: taps over the border meet no pixel.
        values.fill(bad);
        Vae::load(&CONFIG, &weights(&tensors)).unwrap()
    };
    let (x, z) = (clip([3, 5, 16, 16], 1), clip([48, 2, 1, 1], 2));
    let place = |result: Result<Tensor>| match result {
        Err(Error::NotFinite { place, .. }) => place,
        other => panic!("{other:?}"),
    };
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for name in ["decoder.head.layer_2.bias", "decoder.conv1.weight", "conv2.bias"] {
            assert_eq!(place(poisoned(name, bad).decode(&z)), "VAE: pixels of frame 0", "{name} {bad}");
        }
        for name in ["encoder.conv1.weight", "conv1.bias"] {
            assert_eq!(place(poisoned(name, bad).encode(&x)), "VAE: encoded latents", "{name} {bad}");
        }
        let affine = Tensor::new(&[bad], &Device::Cpu).unwrap();
        assert_eq!(place(vae().decode(&z.broadcast_add(&affine).unwrap())), "VAE: latents to decode");
        assert_eq!(place(vae().encode(&x.broadcast_add(&affine).unwrap())), "VAE: encoded latents");
    }
    let posterior = vae().posterior(&x).unwrap();
    let loud = Posterior { log_var: (posterior.log_var.ones_like().unwrap() * 1e3).unwrap(), ..posterior };
    assert_eq!(place(loud.sample(&z.narrow(1, 0, 2).unwrap())), "VAE: sampled latents");
}

#[test]
fn nothing_looks_ahead() {
    let vae = vae();
    let (x, z) = (clip([3, 9, 32, 16], 1), clip([48, 3, 2, 1], 2));
    let (latents, pixels) = (vae.encode(&x).unwrap(), vae.decode(&z).unwrap());
    for n in [1, 2] {
        let frames = 4 * (n - 1) + 1;
        let part = vae.encode(&x.narrow(1, 0, frames).unwrap()).unwrap();
        assert_close("latents", &flat(&part), &flat(&latents.narrow(1, 0, n).unwrap()), 1e-6);
        let part = vae.decode(&z.narrow(1, 0, n).unwrap()).unwrap();
        assert_close("pixels", &flat(&part), &flat(&pixels.narrow(1, 0, frames).unwrap()), 1e-6);
    }
}

#[test]
fn slabs_change_no_bit() {
    let z = clip([48, 3, 5, 2], 2);
    let whole = flat(&vae().decode(&z).unwrap());
    // 20 rows in slabs of 8, and in one that takes all but two.
    let row = 2 * 16 * 2 * CONFIG.decoder_width * 3 * 4;
    for budget in [0, 18 * row] {
        let mut shown = Vec::new();
        let pixels = vae().with_budget(budget).decode_probed(&z, &mut |name, _| {
            shown.push(name.to_string());
            Ok(())
        });
        assert!(flat(&pixels.unwrap()) == whole, "{budget}");
        assert!(!shown.contains(&"decoder.upsamples.3".to_owned()), "slabs are no frames");
        assert_eq!(shown.iter().filter(|name| *name == "decoder.head").count(), 9);
    }
}

#[test]
fn every_later_frame_depends_on_the_first_two_latents() {
    let vae = vae();
    let z = clip([48, 3, 1, 1], 2);
    let pixels = vae.decode(&z).unwrap();
    for changed in 0..2 {
        let mut parts = z.chunk(3, 1).unwrap();
        parts[changed] = (&parts[changed] + 1.0).unwrap();
        let other = vae.decode(&Tensor::cat(&parts, 1).unwrap()).unwrap();
        for frame in [4 * changed, 8] {
            let of = |x: &Tensor| flat(&x.narrow(1, frame, 1).unwrap());
            assert!(of(&pixels) != of(&other), "latent {changed}, frame {frame}");
        }
    }
}

#[test]
fn frames_and_latents_of_another_shape_are_refused() {
    let vae = vae();
    for shape in [[3, 1, 16, 24], [3, 1, 0, 16], [3, 0, 16, 16], [1, 1, 16, 16]] {
        let text = vae.encode(&clip(shape, 1)).unwrap_err().to_string();
        assert!(
            text.starts_with("frames: expected f32 (3, T, H, W)") && text.contains("multiples of 16"),
            "{text}"
        );
    }
    for shape in [[16, 1, 2, 2], [48, 0, 2, 2], [48, 1, 0, 2]] {
        let text = vae.decode(&clip(shape, 1)).unwrap_err().to_string();
        assert!(text.starts_with("latents: expected f32 (48, t, h, w)"), "{text}");
    }
    let half = clip([48, 1, 1, 1], 1).to_dtype(DType::F16).unwrap();
    assert!(vae.decode(&half).unwrap_err().to_string().contains("found F16"));
}

#[test]
fn a_probe_that_fails_ends_the_pass() {
    let mut seen = Vec::new();
    let stop = |name: std::fmt::Arguments<'_>, _: &Tensor| {
        seen.push(name.to_string());
        if seen.len() == 3 { Err(Error::input("pass", "no end", "one")) } else { Ok(()) }
    };
    assert!(vae().decode_probed(&clip([48, 1, 1, 1], 1), &mut { stop }).is_err());
    assert_eq!(seen, ["latents", "conv2", "decoder.conv1"]);
}

#[test]
fn a_stop_flag_ends_a_pass_between_residual_blocks() {
    let vae = vae();
    let (frames, latents) = (clip([3, 5, 16, 32], 1), clip([48, 2, 1, 2], 2));
    let stopped_at = |at: &str, run: &dyn Fn(&mut Monitor<'_>) -> Result<()>| {
        let (stop, mut names) = (StopFlag::new(), Vec::new());
        let mut probe = |name: std::fmt::Arguments<'_>, _: &Tensor| {
            names.push(name.to_string());
            if names.last().is_some_and(|name| name == at) {
                stop.stop();
            }
            Ok(())
        };
        let stopped = run(&mut Monitor { probe: Some(&mut probe), stop: Some(&stop) });
        assert!(matches!(stopped, Err(Error::Stopped)));
        assert_eq!(names.last().unwrap(), at);
    };
    stopped_at("encoder.downsamples.1", &|monitor| vae.run_encoder(&frames, monitor).map(drop));
    for at in ["decoder.middle.0", "decoder.upsamples.0", "decoder.upsamples.2"] {
        stopped_at(at, &|monitor| vae.run_decoder(&latents, monitor).map(drop));
    }

    let stop = StopFlag::new();
    let mean = vae.encode_with_stop(&frames, &stop).unwrap();
    assert_eq!(flat(&mean), flat(&vae.encode(&frames).unwrap()));
    let pixels = vae.decode_with_stop(&latents, &stop).unwrap();
    assert_eq!(flat(&pixels), flat(&vae.decode(&latents).unwrap()));
    stop.stop();
    assert!(matches!(vae.posterior_with_stop(&frames, &stop), Err(Error::Stopped)));
    assert!(matches!(vae.decode_with_stop(&latents, &stop), Err(Error::Stopped)));
}

#[test]
fn the_widths_are_those_of_the_tensors() {
    let mut tensors = vae_tensors(&CONFIG);
    assert_eq!(VaeConfig::of(&weights(&tensors)).unwrap(), CONFIG);
    tensors.retain(|(name, ..)| name != "decoder.head.layer_0.gamma");
    let text = VaeConfig::of(&weights(&tensors)).unwrap_err().to_string();
    assert!(text.contains("expected decoder.head.layer_0.gamma of 1 to 4096 values, found none"), "{text}");
}

#[test]
fn tensors_that_are_missing_misshapen_or_unknown_are_named_together() {
    let mut tensors = vae_tensors(&CONFIG);
    tensors.retain(|(name, ..)| name != "conv2.bias");
    let wrong = tensors.iter_mut().find(|(name, ..)| name == "decoder.middle.1.to_qkv_weight").unwrap();
    wrong.1.reverse();
    let text = Vae::load(&CONFIG, &weights(&tensors)).err().unwrap().to_string();
    assert!(text.contains("conv2.bias: missing, expected [48]"), "{text}");
    assert!(text.contains("to_qkv_weight: expected [24, 1, 1, 8], found [8, 1, 1, 24]"), "{text}");
    let mut tensors = vae_tensors(&CONFIG);
    tensors.push(("decoder.extra".into(), vec![1], vec![0.0]));
    let text = Vae::load(&CONFIG, &weights(&tensors)).err().unwrap().to_string();
    assert!(text.contains("decoder.extra: no part of the model"), "{text}");
}

#[test]
fn the_published_model_has_its_tensors() {
    let config = VaeConfig::default();
    let shapes = crate::required(|weights| Vae::load(&config, weights).map(drop)).unwrap();
    let count: usize = shapes.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    assert_eq!((shapes.len(), count), (196, 704_688_668));
}
