use std::collections::HashMap;

use safetensors::tensor::TensorView;

use super::*;

fn file(dir: &Path, name: &str, tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) -> PathBuf {
    let views: Vec<(&str, TensorView<'_>)> =
        tensors.iter().map(|(n, d, s, b)| (*n, TensorView::new(*d, s.clone(), b).unwrap())).collect();
    let path = dir.join(name);
    safetensors::serialize_to_file(views, None::<HashMap<String, String>>, &path).unwrap();
    path
}

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn message(result: Result<Weights>) -> String {
    result.err().unwrap().to_string()
}

#[test]
fn a_tensor_is_read_by_path_and_shape() {
    let dir = tempfile::tempdir().unwrap();
    let path =
        file(dir.path(), "m.safetensors", &[("a.norm.weight", Dtype::F32, vec![3], f32s(&[1.0, 2.0, 3.0]))]);
    let weights = Weights::open(&[path]).unwrap();
    let t = weights.pp("a").pp("norm").tensor("weight", &[3]).unwrap();
    assert_eq!(t.to_vec1::<f32>().unwrap(), [1.0, 2.0, 3.0]);
    assert!(weights.unread().is_empty());
}

#[test]
fn a_tensor_laid_over_another_counts() {
    let dir = tempfile::tempdir().unwrap();
    let of = |name: &str, tensors: &[(&str, f32)]| {
        let tensors: Vec<_> = tensors.iter().map(|(n, v)| (*n, Dtype::F32, vec![1], f32s(&[*v]))).collect();
        Weights::open(&[file(dir.path(), name, &tensors)]).unwrap()
    };
    let below = of("below.safetensors", &[("a.x", 1.0), ("a.y", 2.0)]);
    let bytes = std::fs::read(dir.path().join("below.safetensors")).unwrap();
    let over = of("over.safetensors", &[("a.y", 3.0), ("a.z", 4.0)]);
    for below in [below, Weights::from_vec("below", bytes).unwrap()] {
        let both = below.pp("a").overlaid(&over);
        for (name, expected) in [("x", 1.0), ("y", 3.0), ("z", 4.0)] {
            assert_eq!(both.tensor(name, &[1]).unwrap().to_vec1::<f32>().unwrap(), [expected], "{name}");
        }
        assert_eq!(both.tensors().len(), 3);
        assert!(!below.has("a.z"), "the tensors below are as they were");
    }
}

#[test]
fn every_wrong_tensor_is_named_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let tensors = [
        ("a", Dtype::F32, vec![2], f32s(&[1.0, 2.0])),
        ("b", Dtype::I32, vec![1], vec![0; 4]),
        ("extra", Dtype::F32, vec![1], f32s(&[0.0])),
    ];
    let weights = Weights::open(&[file(dir.path(), "m.safetensors", &tensors)]).unwrap();
    let cases = [("a", vec![3]), ("b", vec![1]), ("c", vec![4, 5])];
    for (name, shape) in &cases {
        let text = weights.tensor(name, shape).unwrap_err().to_string();
        assert!(text.contains(&format!("1 problem: {name}: ")), "{text}");
    }
    let load = |weights: &Weights| {
        cases.iter().map(|(name, shape)| weights.tensor(name, shape)).collect::<Result<Vec<_>>>()
    };
    let text = weights.load_all(&[""], load).unwrap_err().to_string();
    assert!(text.contains("3 problems"), "{text}");
    assert!(text.contains("a: expected [3], found [2]"), "{text}");
    assert!(text.contains("b: expected F32, F16 or BF16, found I32"), "{text}");
    assert!(text.contains("c: missing, expected [4, 5]"), "{text}");
    assert_eq!(weights.unread(), ["extra"]);
}

#[test]
fn a_placeholder_of_a_huge_shape_takes_no_memory() {
    let weights = Weights::open::<PathBuf>(&[]).unwrap();
    let loaded = weights.load_all(&[], |weights| {
        let t = weights.tensor("huge", &[1 << 20, 1 << 20, 1 << 20])?;
        assert_eq!(t.dims(), [1 << 20, 1 << 20, 1 << 20]);
        Ok(())
    });
    assert!(loaded.is_err());
}

#[test]
fn a_load_ends_with_the_check_of_what_it_did_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let tensors: Vec<_> =
        ["m.a", "m.b", "n.c"].map(|name| (name, Dtype::F32, vec![1], f32s(&[1.0]))).into_iter().collect();
    let open = || Weights::open(&[file(dir.path(), "m.safetensors", &tensors)]).unwrap();
    let a = |weights: &Weights| weights.tensor("a", &[1]);
    let weights = open();
    let text = weights.pp("m").load_all(&[""], a).unwrap_err().to_string();
    assert!(text.contains("1 problem: m.b: no part of the model"), "{text}");
    weights.ignore(|name| name == "m.b");
    weights.pp("m").load_all(&[""], a).unwrap();
    // Problems of a load within a load are not lost, and an error that they may have caused does not hide them.
    let weights = open();
    let text = weights.load_all(&["n."], |weights| {
        weights.tensor("x", &[1])?;
        weights.load_all(&[], |weights| weights.tensor("y", &[1]))
    });
    let text = text.unwrap_err().to_string();
    assert!(text.contains("2 problems: x: missing, expected [1]; y: missing, expected [1]"), "{text}");
    let text = weights.load_all(&[], |weights| {
        weights.tensor("x", &[1])?;
        Err::<(), _>(Error::Stopped)
    });
    assert!(text.unwrap_err().to_string().contains("x: missing"));
    assert!(matches!(weights.load_all(&["n."], |_| Err::<(), _>(Error::Stopped)), Err(Error::Stopped)));
}

#[test]
fn damaged_files_are_named_with_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let whole = file(dir.path(), "m.safetensors", &[("a", Dtype::F32, vec![4], f32s(&[0.0; 4]))]);
    let bytes = std::fs::read(&whole).unwrap();
    let lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n".to_vec();
    let huge = [&u64::MAX.to_le_bytes()[..], b"{}"].concat();
    let cases: [(&str, Vec<u8>, String); 6] = [
        ("empty", Vec::new(), "the file is empty".into()),
        (
            "short",
            bytes[..bytes.len() - 5].to_vec(),
            format!("expected {} bytes, found {}", bytes.len(), bytes.len() - 5),
        ),
        ("header", bytes[..20].to_vec(), "expected a header of".into()),
        ("text", b"this is no checkpoint at all".to_vec(), "truncated or not safetensors".into()),
        ("lfs", lfs, "Git LFS pointer".into()),
        ("huge", huge, "expected a header of 18446744073709551615 bytes".into()),
    ];
    for (name, content, expected) in cases {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        let text = message(Weights::open(&[&path]));
        assert!(text.contains(&expected) && text.contains(name), "{name}: {text}");
    }
    assert!(message(Weights::open(&[dir.path()])).contains("found a folder"));
}

#[test]
fn shards_are_read_through_their_index() {
    let dir = tempfile::tempdir().unwrap();
    file(dir.path(), "m-1.safetensors", &[("a", Dtype::F32, vec![1], f32s(&[1.0]))]);
    file(dir.path(), "m-2.safetensors", &[("b", Dtype::F32, vec![1], f32s(&[2.0]))]);
    let index = dir.path().join("m.safetensors.index.json");
    let write = |json: &str| std::fs::write(&index, json).unwrap();

    write(r#"{"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}"#);
    let weights = Weights::open_in(dir.path(), "m").unwrap();
    assert_eq!(weights.tensor("b", &[1]).unwrap().to_vec1::<f32>().unwrap(), [2.0]);

    write(r#"{"weight_map": {"a": "m-2.safetensors", "b": "m-2.safetensors"}}"#);
    assert!(message(Weights::open_in(dir.path(), "m")).contains("promises a in"));
    write(r#"{"weight_map": {"a": "../m-1.safetensors"}}"#);
    assert!(message(Weights::open_in(dir.path(), "m")).contains("beside the index"));
    assert!(message(Weights::open_in(dir.path(), "other")).contains("found neither"));
}

#[test]
fn a_name_in_two_files_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let one = file(dir.path(), "one", &[("a", Dtype::F32, vec![1], f32s(&[1.0]))]);
    let two = file(dir.path(), "two", &[("a", Dtype::F32, vec![1], f32s(&[2.0]))]);
    assert!(message(Weights::open(&[one, two])).contains("repeats a"));
}

#[test]
fn released_weights_are_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let values: Vec<f32> = (0..100_000).map(|i| i as f32).collect();
    let path = file(dir.path(), "m.safetensors", &[("a", Dtype::F32, vec![100_000], f32s(&values))]);
    let weights = Weights::open(&[path]).unwrap();
    let before = weights.matrix("a", &[100_000]).unwrap();
    let mut row = [0.0];
    before.read_row(99_999, &mut row);
    weights.release().unwrap();
    // A view from before as well as a new one.
    for (matrix, at) in [(&before, 99_999), (&weights.matrix("a", &[100_000]).unwrap(), 1)] {
        matrix.read_row(at, &mut row);
        assert_eq!(row[0], at as f32);
    }
    Weights::open::<PathBuf>(&[]).unwrap().release().unwrap();
}
