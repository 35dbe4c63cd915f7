//! Kernels that are wrong on purpose: each fault is reported, and reported as what it is.
#![cfg(target_os = "linux")]

use msl_sim::{Arg, Build, Launch, Program};

const RMS_NORM: &str = include_str!("kernels/rms_norm.metal");

fn floats(n: usize) -> Vec<u8> {
    (0..n).flat_map(|i| ((i % 7) as f32 - 3.0).to_le_bytes()).collect()
}

fn rms_norm(program: &Program, order: u32) -> Result<Vec<u8>, String> {
    let (mut x, mut w, mut y) = (floats(2 * 300), floats(300), vec![0; 2 * 300 * 4]);
    let launch = Launch::new("rms_norm", [2, 1, 1], [128, 1, 1])
        .arg(Arg::Buffer(0, &mut x))
        .arg(Arg::Buffer(1, &mut w))
        .arg(Arg::Buffer(2, &mut y))
        .arg(Arg::Bytes(3, 300u32.to_le_bytes().to_vec()))
        .arg(Arg::Bytes(4, 1e-6f32.to_le_bytes().to_vec()))
        .order(order);
    program.run(launch).map_err(|e| format!("{e:#}"))?;
    Ok(y)
}

#[test]
fn missing_barrier() {
    let broken = format!("#define BROKEN\n{RMS_NORM}");
    let built = |source: &str, build| Program::from_source(source, build).unwrap();
    let plain = built(RMS_NORM, Build::Plain);
    assert_eq!(rms_norm(&plain, 0), rms_norm(&plain, 1));
    let raced = built(&broken, Build::Plain);
    assert_ne!(rms_norm(&raced, 0), rms_norm(&raced, 1), "lane order shows a missing barrier");
    rms_norm(&built(RMS_NORM, Build::RaceCheck), 0).unwrap();
    let error = rms_norm(&built(&broken, Build::RaceCheck), 0).unwrap_err();
    assert!(error.contains("data race"), "{error}");
}

/// The error of a kernel `k` with this body over `y` of 256 floats.
fn fault(body: &str, threads: u32) -> String {
    let source = format!(
        "#include <metal_stdlib>\nusing namespace metal;\n\
         kernel void k(device float* y [[buffer(0)]], uint t [[thread_index_in_threadgroup]]) {{\n{body}\n}}"
    );
    let mut y = vec![0; 256 * 4];
    let launch = Launch::new("k", [1, 1, 1], [threads, 1, 1]).arg(Arg::Buffer(0, &mut y));
    let run = Program::from_source(&source, Build::Plain).and_then(|program| program.run(launch));
    format!("{:#}", run.expect_err("each kernel is wrong"))
}

#[test]
fn faults_are_named() {
    let cases = [
        ("if (t < 16) y[t] = simd_sum(1.0f);\n else y[t] = simd_max(2.0f);", 32, "divergent"),
        (
            "if (t == 3) return;\n threadgroup_barrier(mem_flags::mem_threadgroup); y[t] = 1;",
            64,
            "not reached by every thread",
        ),
        ("threadgroup float big[8193]; big[t] = 1; y[t] = big[t];", 32, "threadgroup memory"),
        ("threadgroup float a[32]; a[t + 1] = 1; y[t] = a[t];", 32, "threadgroup array"),
        ("y[t * 8 + 8] = 1;", 32, "access outside buffer 0"),
        ("y[0] = undeclared;", 1, ":4:"),
        ("threadgroup float a[2] = {1, 2}; y[t] = a[0];", 1, "without initialiser"),
    ];
    for (body, threads, expected) in cases {
        let error = fault(body, threads);
        assert!(error.contains(expected), "{body}: expected {expected:?} in {error:?}");
    }
}

#[test]
fn an_unknown_kernel_lists_those_there_are() {
    let program = Program::from_source(RMS_NORM, Build::Plain).unwrap();
    assert_eq!(program.kernels(), ["rms_norm"]);
    let error = program.run(Launch::new("norm", [1, 1, 1], [1, 1, 1])).unwrap_err();
    assert!(format!("{error:#}").contains("no kernel named norm; have: rms_norm"), "{error:#}");
}
