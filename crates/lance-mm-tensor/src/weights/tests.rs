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

/// A file of this header and so many bytes of data.
fn raw(header: &str, data: usize) -> Result<Weights> {
    let length = (header.len() as u64).to_le_bytes();
    Weights::from_vec("raw", [&length[..], header.as_bytes(), &vec![0; data]].concat())
}

#[test]
fn damaged_headers_are_refused_in_few_words() {
    let tensor = |name: &str, shape: &str, offsets: &str| {
        format!(r#"{{"{name}":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    let dimensions = format!("[{}1]", "1,".repeat(100_000));
    let name = "x".repeat(100_000);
    let huge = format!("[{0},{0},{0}]", 1u64 << 62);
    let two = |a: &str, b: &str| {
        format!(
            r#"{{"a":{{"dtype":"F32","shape":[1],"data_offsets":{a}}},"b":{{"dtype":"F32","shape":[1],"data_offsets":{b}}}}}"#
        )
    };
    let cases = [
        (
            format!("{{\"a\":[{}0]}}", "0,".repeat(1 << 20)),
            0,
            "raw: a: invalid type: sequence, expected an object",
        ),
        (" ".repeat((8 << 20) + 1), 0, "raw: expected a header of at most 8388608 bytes, found 8388609"),
        (
            tensor("a", &dimensions, "[0,4]"),
            4,
            "raw: a.shape: invalid length 9, expected a list of at most 8",
        ),
        (tensor(&name, "[1]", "[4,8]"), 8, "raw: invalid offset for tensor `xxx"),
        (tensor("a", "[2]", "[0,4]"), 4, "raw: invalid shape"),
        (tensor("a", &huge, "[0,4]"), 4, "raw: overflow"),
        (tensor("a", "[-1]", "[0,4]"), 4, "raw: invalid JSON in header: invalid value: integer `-1`"),
        (tensor("a", "[1]", "[0,-4]"), 4, "raw: a.data_offsets[1]: invalid value: integer `-4`"),
        (
            tensor("a", "[1]", "[0,18446744073709551615]"),
            4,
            "raw: truncated: expected 18446744073709551615 bytes",
        ),
        (tensor("a", "[1]", "[4,0]"), 4, "raw: invalid offset for tensor `a`"),
        (
            r#"{"a":{"dtype":"F32","shape":[1],"x":[0,0],"data_offsets":[0,4]}}"#.into(),
            4,
            "raw: a.x: unknown field `x`, expected one of `dtype`, `shape`, `data_offsets`",
        ),
        (
            r#"{"a":{"dtype":[0],"shape":[1],"data_offsets":[0,4]}}"#.into(),
            4,
            "raw: a.dtype: invalid type: sequence",
        ),
        (two("[0,4]", "[2,6]"), 6, "raw: invalid offset for tensor `b`"),
        (two("[0,4]", "[8,12]"), 12, "raw: invalid offset for tensor `b`"),
        (tensor("a", "[1]", "[0,4]"), 9, "raw: incomplete metadata"),
        ("[]".into(), 0, "raw: invalid type: sequence, expected an object"),
        (format!("{}1{}", r#"{"a":"#.repeat(100_000), "}".repeat(100_000)), 0, "raw: "),
    ];
    for (header, data, expected) in cases {
        let text = message(raw(&header, data));
        assert!(text.starts_with(expected) && text.len() < 600, "{text}, expected {expected}");
    }
    // A name that is merely long is a tensor that no model has.
    let weights = raw(&tensor(&name, "[1]", "[0,4]"), 4).unwrap();
    assert!(weights.load_all(&[""], |_| Ok(())).unwrap_err().to_string().len() < 600);
}

#[test]
fn problems_of_many_layers_stay_short() {
    let list = (0..2_000).map(|i| Problem {
        tensor: format!("{}.{}.{}", i % 40, i * 2, "y".repeat(1000)),
        what: "z".repeat(1000),
        missing: None,
    });
    assert!(Problems { files: "f".into(), list: list.collect() }.to_string().len() < 4000);
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
    for shard in ["../m-1.safetensors", "/etc/passwd", "/", "..", ".", "", "sub/m-1.safetensors"] {
        write(&format!(r#"{{"weight_map": {{"a": "{shard}"}}}}"#));
        let text = message(Weights::open_in(dir.path(), "m"));
        assert!(text.contains("beside the index"), "{shard}: {text}");
    }
    for (json, expected) in [
        (r#"{"weight_map": {"a": 5}}"#, "weight_map.a: invalid type: integer `5`, expected a string"),
        (r#"{"weight_map": []}"#, "weight_map: invalid type: sequence, expected a map"),
        ("{}", "missing field `weight_map`"),
        ("[{}]", "invalid type: sequence, expected an object"),
    ] {
        write(json);
        let text = message(Weights::open_in(dir.path(), "m"));
        assert!(text.contains(expected), "{text}");
    }
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
