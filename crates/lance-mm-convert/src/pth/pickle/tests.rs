use super::*;

fn error(bytes: &[u8]) -> String {
    read(bytes).unwrap_err()
}

/// `{"w": tensor of shape (2, 3), strides (3, 1)}`, `middle` before the end.
fn pickle(global: &[u8], middle: &[u8]) -> Vec<u8> {
    let parts: [&[u8]; 8] = [
        b"\x80\x02}q\x00(X\x01\x00\x00\x00w",
        global,
        b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQ",
        b"K\x00K\x02K\x03\x86K\x03K\x01\x86\x89",
        b"ccollections\nOrderedDict\n)RtR",
        middle,
        b"u",
        b".",
    ];
    parts.concat()
}

const REBUILD: &[u8] = b"ctorch._utils\n_rebuild_tensor_v2\n";

#[test]
fn a_dict_of_tensors_is_read() {
    let tensors = read(&pickle(REBUILD, b"")).unwrap();
    let [Rebuilt { name, storage, offset: 0, shape, strides }] = &tensors[..] else { panic!("{tensors:?}") };
    assert_eq!(
        (name.as_str(), storage.key.as_str(), storage.dtype, storage.count),
        ("w", "0", Dtype::F32, 6)
    );
    assert_eq!((shape.as_slice(), strides.as_slice()), ([2, 3].as_slice(), [3, 1].as_slice()));
}

#[test]
fn what_could_run_code_is_refused_by_name() {
    let call = b"cos\nsystem\n(X\x02\x00\x00\x00lstR";
    assert!(error(&[b"\x80\x02", call.as_slice(), b"."].concat()).contains("global os.system is not one"));
    for (global, name) in [
        (b"cbuiltins\neval\n".as_slice(), "builtins.eval"),
        (b"ctorch._utils\n_rebuild_tensor\n", "torch._utils._rebuild_tensor"),
        (b"ctorch\nUntypedStorage\n", "torch.UntypedStorage"),
        (b"cos\nsystem\rtorch\n", "os.system\\rtorch"),
    ] {
        let error = error(&pickle(global, b""));
        assert!(error.contains(&format!("global {name} is not one")), "{error}");
    }
    for (opcode, name) in [
        (b'i', "INST"),
        (b'o', "OBJ"),
        (0x81, "NEWOBJ"),
        (0x82, "EXT"),
        (0x93, "STACK_GLOBAL"),
        (b'P', "PERSID"),
        (b']', "EMPTY_LIST"),
        (b'0', "0x30"),
    ] {
        let error = error(&pickle(REBUILD, &[opcode]));
        assert!(error.contains("byte ") && error.contains(name), "{error}");
    }
    // Storage types are names, not functions.
    assert!(error(b"\x80\x02ctorch\nFloatStorage\n)R.").contains("a call of a storage type: refused"));
    assert!(error(b"\x80\x02ccollections\nOrderedDict\n}b.").contains("of a function: refused"));
    assert!(error(b"\x80\x04.").contains("protocol 2, found 4"));
}

#[test]
fn damage_is_an_error() {
    let whole = pickle(REBUILD, b"");
    for length in 0..whole.len() {
        assert!(read(&whole[..length]).is_err(), "{length}");
    }
    // Every byte, every bit: whatever comes out, nothing panics.
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << bit;
            let _ = read(&bytes);
        }
    }
    for (bytes, expected) in [
        (b"\x80\x02K\x01.".as_slice(), "expected a dict of tensors"),
        (b"\x80\x02}X\x01\x00\x00\x00wK\x01s.", "w: expected a tensor, found a number"),
        (b"\x80\x02}K\x01K\x01s.", "expected names as keys"),
        (b"\x80\x02}(K\x01u.", "expected keys and values, found 1 items"),
        (b"\x80\x02h\x05.", "nothing remembered as 5"),
        (b"\x80\x02(q\x00.", "nothing to remember"),
        (b"\x80\x02t.", "no mark"),
        (b"\x80\x02X\xff\xff\xff\xffw.", "ends early"),
        (b"\x80\x02\x8a\x09.", "8 bytes at most, found 9"),
        (b"\x80\x02K\x01K\x02\x86Q.", "expected a persistent id"),
    ] {
        let found = error(bytes);
        assert!(found.contains(expected), "{found}");
    }
}

#[test]
fn nesting_without_end_is_no_trouble() {
    let nested = |depth| [b"\x80\x02)".as_slice(), &vec![0x85; depth], b"."].concat();
    assert!(error(&nested(1 << 17)).contains("expected a dict"));
    // Tuples in tuples, marks, dicts, numbers: none of them without end.
    for opcode in [0x85, b'(', b'}', b')', b'N'] {
        let bytes = [b"\x80\x02)".as_slice(), &vec![opcode; MAX_OPCODES]].concat();
        assert_eq!(error(&bytes), "expected at most 262144 opcodes, found more");
    }
}

#[test]
fn integers_of_any_length() {
    let mut machine = Machine::new(b"\x02\xff\x7f\x01\xff\x00");
    assert_eq!([(); 3].map(|()| machine.long().unwrap()), [32767, -1, 0]);
}
