use candle_core::{DType, Device};
use lance_mm_tensor::ActivationPrecision;
use lance_mm_tensor::testing::{assert_close, seeded};

use super::*;
use crate::sequence::Grid;
use crate::testing::{config, llm_tensors, weights};

fn llm(experts: Experts) -> Llm {
    let config = config();
    Llm::load(&config, &weights(&llm_tensors(&config)), experts).unwrap()
}

fn flat(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

fn features(n: usize, seed: u64) -> Tensor {
    Tensor::from_vec(seeded(n * 32, seed), (n, 32), &Device::Cpu).unwrap()
}

/// Text, a picture, text, another picture, text.
fn prompt() -> (Vec<Segment>, Vec<Tensor>) {
    let segments = vec![
        Segment::Text(vec![1, 2, 3]),
        Segment::Vit(Grid { t: 1, h: 2, w: 2 }),
        Segment::Text(vec![4]),
        Segment::Vit(Grid { t: 2, h: 1, w: 2 }),
        Segment::Text(vec![5, 6, 7, 8]),
    ];
    (segments, vec![features(4, 1), features(4, 2)])
}

/// Runs segments from where the cache ends; the last row after the final norm.
fn run(
    llm: &Llm,
    segments: &[Segment],
    features: &[Tensor],
    start: Cursor,
    cache: &mut Cache,
) -> (Tensor, Cursor) {
    let sequence = Sequence::new(segments, &llm.config().layout(), start);
    let x = llm.embed(&sequence, features).unwrap();
    (llm.prefill(&x, &sequence, cache).unwrap(), sequence.end())
}

/// No kernel on the way may make a number of NaN: by a maximum that drops it, a clamp or a cast.
#[test]
fn damage_of_any_tensor_is_an_error_of_the_logits() {
    let config = config();
    let sound = llm_tensors(&config);
    let (segments, features) = prompt();
    for (i, (name, ..)) in sound.iter().enumerate().filter(|(_, (name, ..))| !is_gen(name)) {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut tensors = sound.clone();
            tensors[i].2.fill(bad);
            let weights = weights(&tensors);
            for precision in [ActivationPrecision::Bf16, ActivationPrecision::F32] {
                let weights = weights.clone().with_activation_precision(precision);
                let llm = Llm::load(&config, &weights, Experts::Und).unwrap();
                let mut cache = llm.cache();
                let (hidden, _) = run(&llm, &segments, &features, Cursor::default(), &mut cache);
                let logits = llm.logits(&hidden);
                assert!(
                    matches!(logits, Err(Error::NotFinite { .. })),
                    "{name} {bad} {precision:?}: {logits:?}"
                );
            }
        }
    }
}

#[test]
fn one_pass_equals_two_equals_token_by_token() {
    let llm = llm(Experts::Und);
    let (segments, features) = prompt();
    let mut cache = llm.cache();
    let (expected, end) = run(&llm, &segments, &features, Cursor::default(), &mut cache);
    let expected = flat(&llm.logits(&expected).unwrap());

    for cut in 1..segments.len() {
        let before = segments[..cut].iter().filter(|s| matches!(s, Segment::Vit(_))).count();
        let mut cache = llm.cache();
        let (_, at) = run(&llm, &segments[..cut], &features[..before], Cursor::default(), &mut cache);
        let (last, stop) = run(&llm, &segments[cut..], &features[before..], at, &mut cache);
        assert_eq!(stop, end);
        assert_close(&format!("cut {cut}"), &flat(&llm.logits(&last).unwrap()), &expected, 2e-5);
    }

    let mut cache = llm.cache();
    let (_, mut at) = run(&llm, &segments[..4], &features, Cursor::default(), &mut cache);
    let mut last = None;
    for id in [5, 6, 7, 8] {
        last = Some(llm.step(id, at, &mut cache).unwrap());
        at = Cursor { rows: at.rows + 1, position: at.position + 1 };
    }
    assert_close("steps", &flat(&llm.logits(&last.unwrap()).unwrap()), &expected, 2e-5);
}

#[test]
fn sequences_together_go_on_as_each_alone() {
    let llm = llm(Experts::Und);
    let (segments, features) = prompt();
    // Of different lengths and positions; the second ends after two tokens, the third after three.
    let prompts = [(&segments[..], &features[..]), (&segments[..1], &[]), (&segments[..4], &features)];
    let tokens: [&[u32]; 3] = [&[5, 6, 7, 8], &[9, 10], &[1, 1, 2]];
    let start = |(segments, features): (&[Segment], &[Tensor])| {
        let mut cache = llm.cache();
        let (_, at) = run(&llm, segments, features, Cursor::default(), &mut cache);
        (cache, at)
    };
    let next = |at: &mut Cursor| {
        let now = *at;
        *at = Cursor { rows: at.rows + 1, position: at.position + 1 };
        now
    };
    let alone: Vec<Vec<Vec<f32>>> = prompts
        .iter()
        .zip(tokens)
        .map(|(prompt, ids)| {
            let (mut cache, mut at) = start(*prompt);
            ids.iter().map(|id| flat(&llm.step(*id, next(&mut at), &mut cache).unwrap())).collect()
        })
        .collect();
    let mut runs: Vec<(Cache, Cursor)> = prompts.map(start).into();
    for round in 0..4 {
        let mut steps = Vec::new();
        let mut members = Vec::new();
        for (i, (cache, at)) in runs.iter_mut().enumerate() {
            if let Some(id) = tokens[i].get(round) {
                steps.push(NextToken { id: *id, start: next(at), cache });
                members.push(i);
            }
        }
        let rows = llm.step_all(steps).unwrap();
        assert_eq!(rows.dims(), [members.len(), 32]);
        for (row, i) in members.into_iter().enumerate() {
            let row = flat(&rows.narrow(0, row, 1).unwrap());
            assert_close(&format!("round {round} sequence {i}"), &row, &alone[i][round], 2e-5);
        }
    }
}

#[test]
fn a_step_that_fails_leaves_all_caches() {
    let llm = llm(Experts::Und);
    let (segments, _) = prompt();
    let mut caches = [llm.cache(), llm.cache()];
    let (_, at) = run(&llm, &segments[..1], &[], Cursor::default(), &mut caches[0]);
    let step = |ids: [u32; 2], starts: [Cursor; 2], caches: &mut [Cache; 2]| {
        let steps = caches.iter_mut().zip(ids).zip(starts);
        llm.step_all(steps.map(|((cache, id), start)| NextToken { id, start, cache }).collect())
    };
    assert!(
        step([1, 2], [at, at], &mut caches).unwrap_err().to_string().contains("the cache's end 0, found 3")
    );
    assert!(step([1, 64], [at, Cursor::default()], &mut caches).is_err());
    assert!(llm.step_all(Vec::new()).is_err());
    assert_eq!(caches.each_ref().map(Cache::len), [3, 0]);
    step([1, 2], [at, Cursor::default()], &mut caches).unwrap();
    assert_eq!(caches.each_ref().map(Cache::len), [4, 1]);
}

#[test]
fn layers_one_by_one_equal_one_pass() {
    let llm = llm(Experts::Und);
    let (segments, features) = prompt();
    let sequence = Sequence::new(&segments, &llm.config().layout(), Cursor::default());
    let mut x = llm.embed(&sequence, &features).unwrap();
    let expected = llm.forward(&x, &sequence, &mut llm.cache()).unwrap();
    let inputs = [
        (LinearInput::Normed, "input_layernorm"),
        (LinearInput::Heads, "self_attn.heads"),
        (LinearInput::Attended, "post_attention_layernorm"),
        (LinearInput::Gated, "mlp.gated"),
    ];
    let last = sequence.len() as u32 - 1;
    let rows: &[u32] = &[0, 3, last];
    for i in 0..2 {
        let mut seen = Vec::new();
        let next = llm.run_layer(i, &x, &sequence, &mut |name, rows| {
            seen.push((name.to_string(), rows.clone()));
            Ok(())
        });
        for (input, name) in inputs {
            let found = llm.layer_input(i, &x, &sequence, (rows, Expert::Und), input).unwrap();
            let (_, all) = seen.iter().find(|(seen, _)| seen.ends_with(name)).unwrap();
            let expected = all.index_select(&Tensor::new(rows, &Device::Cpu).unwrap(), 0).unwrap();
            assert_close(name, &flat(&found), &flat(&expected), 1e-5);
        }
        x = next.unwrap();
    }
    assert!(llm.layer_input(0, &x, &sequence, (&[last + 1], Expert::Und), LinearInput::Normed).is_err());
    assert_eq!(flat(&x), flat(&expected));
    assert!(llm.run_layer(2, &x, &sequence, &mut |_, _| Ok(())).is_err());
    let later = Sequence::new(&segments, &llm.config().layout(), sequence.end());
    assert!(llm.run_layer(0, &x, &later, &mut |_, _| Ok(())).is_err());
}

#[test]
fn a_fork_and_a_truncated_cache_go_on_as_the_original() {
    let llm = llm(Experts::Und);
    let (segments, features) = prompt();
    let mut cache = llm.cache();
    let (_, at) = run(&llm, &segments[..4], &features, Cursor::default(), &mut cache);
    let question = [Segment::Text(vec![9, 10])];
    let mut fork = cache.fork().unwrap();
    let (expected, _) = run(&llm, &question, &[], at, &mut fork);
    // Another question first, then forgotten.
    run(&llm, &[Segment::Text(vec![11; 300])], &[], at, &mut cache);
    assert!(cache.truncate(cache.len() + 1).is_err());
    cache.truncate(at.rows).unwrap();
    let (found, _) = run(&llm, &question, &[], at, &mut cache);
    assert_eq!(flat(&found), flat(&expected));
}

#[test]
fn other_sequences_do_not_matter() {
    let llm = llm(Experts::Und);
    let (segments, features) = prompt();
    let alone = run(&llm, &segments, &features, Cursor::default(), &mut llm.cache()).0;
    for other in [vec![Segment::Text(vec![1])], vec![Segment::Text(vec![50; 40])]] {
        let mut first = llm.cache();
        run(&llm, &other, &[], Cursor::default(), &mut first);
        let mut second = llm.cache();
        let found = run(&llm, &segments, &features, Cursor::default(), &mut second).0;
        assert_eq!(flat(&found), flat(&alone));
    }
}

#[test]
fn a_later_row_of_the_block_reaches_an_earlier_one() {
    let llm = llm(Experts::Und);
    let (segments, mut features) = prompt();
    let layout = llm.config().layout();
    let rows = |sequence: Sequence, features: &[Tensor]| {
        let x = llm.embed(&sequence, features).unwrap();
        flat(&llm.forward(&x, &sequence, &mut llm.cache()).unwrap())
    };
    let sequence = Sequence::new(&segments, &layout, Cursor::default());
    let (full, causal) = (rows(sequence.clone(), &features), rows(sequence.clone().causal(), &features));
    // Change the last feature row of the first picture (row 7); its first row (row 4) sees that only in full mode.
    let mut changed = seeded(4 * 32, 1);
    changed[3 * 32..].fill(3.0);
    features[0] = Tensor::from_vec(changed, (4, 32), &Device::Cpu).unwrap();
    let row = |x: &[f32]| x[4 * 32..5 * 32].to_vec();
    assert_ne!(row(&rows(sequence.clone(), &features)), row(&full));
    assert_eq!(row(&rows(sequence.causal(), &features)), row(&causal));
}

#[test]
fn each_row_runs_on_its_own_expert() {
    let config = config();
    let (both, und) = (llm(Experts::Both), llm(Experts::Und));
    let segments = [Segment::Text(vec![1, 2]), Segment::Noise(Grid { t: 1, h: 1, w: 3 })];
    let sequence = Sequence::new(&segments, &config.layout(), Cursor::default());
    let x = both.embed(&sequence, &[features(3, 5)]).unwrap();
    let hidden = both.forward(&x, &sequence, &mut both.cache()).unwrap();

    // With GEN weights equal to UND's, the same rows as a vision block give the same.
    let mut tensors = llm_tensors(&config);
    let by_name: std::collections::HashMap<String, Vec<f32>> =
        tensors.iter().map(|(name, _, values)| (name.clone(), values.clone())).collect();
    for (name, _, values) in &mut tensors {
        values.clone_from(&by_name[&name.replace("_moe_gen", "")]);
    }
    let twins = Llm::load(&config, &weights(&tensors), Experts::Both).unwrap();
    let vision = Sequence::new(
        &[Segment::Text(vec![1, 2]), Segment::Vit(Grid { t: 1, h: 1, w: 3 })],
        &config.layout(),
        Cursor::default(),
    );
    let same = flat(&und.forward(&x, &vision, &mut und.cache()).unwrap());
    assert_close("twins", &flat(&twins.forward(&x, &sequence, &mut twins.cache()).unwrap()), &same, 2e-5);
    let (difference, _) = lance_mm_tensor::testing::max_error(&flat(&hidden), &same);
    assert!(difference > 0.1, "the GEN expert has weights of its own: {difference}");

    let text = und.forward(&x, &sequence, &mut und.cache()).unwrap_err().to_string();
    assert!(text.contains("rows of the GEN expert"), "{text}");
}

#[test]
fn an_added_gen_expert_shares_the_weights_of_und() {
    let config = config();
    let tensors = llm_tensors(&config);
    let (und, both) = (llm(Experts::Und), llm(Experts::Both));
    // The GEN expert's file may hold everything or that expert alone.
    let gen_only: Vec<_> = tensors.iter().filter(|(name, ..)| is_gen(name)).cloned().collect();
    for tensors in [&tensors, &gen_only] {
        let added = und.with_gen(&weights(tensors)).unwrap();
        for path in ["layers.1.self_attn.q_proj", "layers.0.mlp.down_proj", "lm_head"] {
            let bytes = |llm: &Llm| llm.linear(path).unwrap().weight().stored()[0].as_ptr();
            assert_eq!(bytes(&added), bytes(&und), "{path}");
            assert_ne!(bytes(&both), bytes(&und), "{path}");
        }
        let table = |llm: &Llm| llm.embed_tokens.weight().stored()[0].as_ptr();
        assert_eq!(table(&added), table(&und));
        for path in ["layers.1.input_layernorm", "norm"] {
            let weight = |llm: &Llm| llm.residual_norm(path).unwrap().weight().id();
            assert_eq!(weight(&added), weight(&und), "{path}");
        }
        let segments = [Segment::Text(vec![1, 2]), Segment::Noise(Grid { t: 1, h: 1, w: 3 })];
        let sequence = Sequence::new(&segments, &config.layout(), Cursor::default());
        let x = both.embed(&sequence, &[features(3, 5)]).unwrap();
        let hidden = |llm: &Llm| flat(&llm.forward(&x, &sequence, &mut llm.cache()).unwrap());
        assert_eq!(hidden(&added), hidden(&both));
    }
    let mut wrong = gen_only;
    wrong.retain(|(name, ..)| !name.ends_with("q_norm_moe_gen.weight"));
    let text = und.with_gen(&weights(&wrong)).err().unwrap().to_string();
    assert!(
        text.contains("layers.{0..1}.self_attn.q_norm_moe_gen.weight: missing, expected [8] (2)"),
        "{text}"
    );
    let mut unknown = tensors;
    unknown.push(("layers.2.mlp_moe_gen.up_proj.weight".into(), vec![48, 32], vec![0.0; 48 * 32]));
    let text = und.with_gen(&weights(&unknown)).err().unwrap().to_string();
    assert!(text.contains("layers.2.mlp_moe_gen.up_proj.weight: no part of the model"), "{text}");
}

#[test]
fn models_and_caches_may_go_to_other_threads() {
    fn shared<T: Clone + Send + Sync>() {}
    fn sent<T: Send>() {}
    shared::<Llm>();
    sent::<Cache>();
}

#[test]
fn a_fork_takes_memory_for_the_rows_in_use() {
    let llm = llm(Experts::Und);
    let mut cache = llm.cache();
    let (_, at) = run(&llm, &[Segment::Text(vec![1; 300])], &[], Cursor::default(), &mut cache);
    assert_eq!(cache.fork().unwrap().bytes(), cache.bytes());
    cache.truncate(100).unwrap();
    let mut fork = cache.fork().unwrap();
    assert_eq!((fork.len(), 2 * fork.bytes()), (100, cache.bytes()));
    let start = Cursor { rows: 100, position: at.position };
    let (found, _) = run(&llm, &[Segment::Text(vec![2])], &[], start, &mut fork);
    let (expected, _) = run(&llm, &[Segment::Text(vec![2])], &[], start, &mut cache);
    assert_eq!(flat(&found), flat(&expected));
    cache.truncate(0).unwrap();
    assert_eq!(cache.fork().unwrap().bytes(), 0);
}

#[test]
fn rows_that_do_not_fit_are_refused_and_leave_the_cache() {
    let llm = llm(Experts::Und);
    let layout = llm.config().layout();
    let mut cache = llm.cache();
    let sequence = Sequence::new(&[Segment::Text(vec![1, 2])], &layout, Cursor::default());
    let x = llm.embed(&sequence, &[]).unwrap();
    llm.forward(&x, &sequence, &mut cache).unwrap();
    let again = llm.forward(&x, &sequence, &mut cache).unwrap_err().to_string();
    assert!(again.contains("a start at the cache's end 2, found 0"), "{again}");
    let empty = Sequence::new(&[], &layout, sequence.end());
    assert!(llm.forward(&x, &empty, &mut cache).is_err());
    let wide = Tensor::zeros((2, 33), DType::F32, &Device::Cpu).unwrap();
    let next = Sequence::new(&[Segment::Text(vec![1, 2])], &layout, sequence.end());
    assert!(llm.forward(&wide, &next, &mut cache).is_err());
    let failed = llm.forward_probed(&x, &next, &mut cache, &mut |name, _| match name.to_string().as_str() {
        "layers.1.self_attn" => Err(Error::input("probe", "nothing", "a fault")),
        _ => Ok(()),
    });
    assert!(failed.is_err());
    assert_eq!(cache.len(), 2);
    assert!(llm.embed(&sequence, &[features(1, 1)]).is_err());
}

/// Names that a pass shows to a probe which sets the stop flag at `at`.
fn stopped_at(at: &str, llm: &Llm, x: &Tensor, sequence: &Sequence, cache: &mut Cache) -> Vec<String> {
    let (stop, mut names) = (StopFlag::new(), Vec::new());
    let mut probe = |name: std::fmt::Arguments<'_>, _: &Tensor| {
        names.push(name.to_string());
        if names.last().is_some_and(|name| name == at) {
            stop.stop();
        }
        Ok(())
    };
    let mut monitor = Monitor { probe: Some(&mut probe), stop: Some(&stop) };
    let stopped = llm.run(x, sequence, cache, &mut monitor);
    assert!(matches!(stopped, Err(Error::Stopped)));
    names
}

#[test]
fn a_stop_flag_ends_a_pass_between_layers_and_leaves_the_cache() {
    let llm = llm(Experts::Und);
    let (segments, features) = prompt();
    let mut cache = llm.cache();
    let (_, start) = run(&llm, &segments[..2], &features[..1], Cursor::default(), &mut cache);
    let sequence = Sequence::new(&segments[2..], &llm.config().layout(), start);
    let x = llm.embed(&sequence, &features[1..]).unwrap();

    let names = stopped_at("layers.0.self_attn", &llm, &x, &sequence, &mut cache);
    assert_eq!(names.last().unwrap(), "layers.0", "the layer is finished, the next one is not begun");
    assert_eq!(cache.len(), start.rows);
    let stop = StopFlag::new();
    stop.stop();
    assert!(matches!(llm.prefill_with_stop(&x, &sequence, &mut cache, &stop), Err(Error::Stopped)));
    assert!(matches!(llm.forward_with_stop(&x, &sequence, &mut cache, &stop), Err(Error::Stopped)));
    assert_eq!(cache.len(), start.rows);

    let unset = StopFlag::new();
    let (mut twin, mut other) = (cache.fork().unwrap(), cache.fork().unwrap());
    let hidden = llm.forward_with_stop(&x, &sequence, &mut other, &unset).unwrap();
    assert_eq!(flat(&hidden), flat(&llm.forward(&x, &sequence, &mut cache.fork().unwrap()).unwrap()));
    let row = llm.prefill_with_stop(&x, &sequence, &mut twin, &unset).unwrap();
    assert_eq!(flat(&row), flat(&llm.prefill(&x, &sequence, &mut cache).unwrap()));
    assert_eq!(twin.len(), cache.len());
}

#[test]
fn wrong_checkpoints_are_named_in_one_message() {
    let config = config();
    let mut tensors = llm_tensors(&config);
    tensors.retain(|(name, _, _)| !name.ends_with("self_attn.q_norm.weight"));
    tensors.push(("layers.2.mlp.up_proj.weight".into(), vec![48, 32], vec![0.0; 48 * 32]));
    tensors.push(("notes".into(), vec![1], vec![0.0]));
    let text = Llm::load(&config, &weights(&tensors), Experts::Und).err().unwrap().to_string();
    assert!(text.contains("layers.{0..1}.self_attn.q_norm.weight: missing, expected [8] (2)"), "{text}");
    let mut tensors = llm_tensors(&config);
    tensors.push(("layers.2.mlp.up_proj.weight".into(), vec![48, 32], vec![0.0; 48 * 32]));
    let text = Llm::load(&config, &weights(&tensors), Experts::Und).err().unwrap().to_string();
    assert!(text.contains("layers.2.mlp.up_proj.weight: no part of the model"), "{text}");
}

#[test]
fn a_tied_head_is_the_embedding_table() {
    let mut config = config();
    let mut tensors = llm_tensors(&config);
    tensors.retain(|(name, _, _)| name != "lm_head.weight");
    let text = Llm::load(&config, &weights(&tensors), Experts::Und).err().unwrap().to_string();
    assert!(text.contains("lm_head.weight: missing"), "{text}");
    config.tie_word_embeddings = true;
    let tied = Llm::load(&config, &weights(&tensors), Experts::Und).unwrap();
    let x = features(1, 3);
    let table = tied
        .embed(&Sequence::new(&[Segment::Text((0..64).collect())], &config.layout(), Cursor::default()), &[]);
    let expected = x.matmul(&table.unwrap().t().unwrap()).unwrap();
    assert_close("tied", &flat(&tied.logits(&x).unwrap()), &flat(&expected), 1e-5);
}

#[test]
fn parts_are_found_by_their_path() {
    let llm = llm(Experts::Und);
    let shape = |path: &str| llm.linear(path).map(|l| (l.weight().n_rows(), l.weight().n_cols()));
    let config = llm.config();
    let (d, f, kv) =
        (config.hidden_size, config.intermediate_size, config.num_key_value_heads * config.head_dim());
    for (path, expected) in [
        ("layers.1.self_attn.q_proj", (d, d)),
        ("layers.0.self_attn.k_proj", (kv, d)),
        ("layers.0.self_attn.v_proj", (kv, d)),
        ("layers.0.self_attn.o_proj", (d, d)),
        ("layers.1.mlp.gate_proj", (f, d)),
        ("layers.1.mlp.up_proj", (f, d)),
        ("layers.1.mlp.down_proj", (d, f)),
        ("lm_head", (config.vocab_size, d)),
    ] {
        assert_eq!(shape(path), Some(expected), "{path}");
    }
    for path in ["layers.2.mlp.up_proj", "layers.x.mlp.up_proj", "layers.0.mlp", "embed_tokens", ""] {
        assert_eq!(shape(path), None, "{path}");
    }
    for path in ["layers.1.input_layernorm", "layers.0.post_attention_layernorm", "norm"] {
        assert_eq!(llm.residual_norm(path).unwrap().weight().dims(), [d]);
    }
    assert!(llm.residual_norm("layers.0.self_attn").is_none());
}
