//! Encoding of plans on a Metal device.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use candle_core::metal_backend::{DeviceId, MetalError};
use candle_core::{DType, Layout, MetalDevice, MetalStorage, Result, bail};
use candle_metal_kernels::metal::{
    Buffer, ComputeCommandEncoder, ComputePipeline, ConstantValues, Library, Value,
};
use objc2::available;
use objc2::rc::Retained;
use objc2_metal::{MTLCompileOptions, MTLLanguageVersion, MTLMathMode, MTLSize};

use super::{KernelArg, KernelPlan};

/// The buffer of one tensor, from its first value on.
pub(super) struct Input<'a> {
    buffer: &'a Buffer,
    /// In bytes.
    offset: usize,
}

impl<'a> Input<'a> {
    pub(super) fn new(storage: &'a MetalStorage, layout: &Layout) -> Self {
        use candle_core::backend::BackendStorage;

        let offset = layout.start_offset() * storage.dtype().size_in_bytes();
        Self { buffer: storage.buffer(), offset }
    }
}

/// Encodes one dispatch; the device runs it when its command buffer is committed.
pub(super) fn run(plan: &KernelPlan, device: &MetalDevice, inputs: &[Input<'_>]) -> Result<MetalStorage> {
    let pipeline = pipeline(plan, device)?;
    let (count, float) = plan.output();
    let dtype = DType::from(float);
    let output = device.new_buffer_builder().with_size_for(count, dtype).with_label(&plan.kernel).build()?;
    {
        // Holds a lock that every operation on the device takes: nothing else may happen in here.
        let guard = device.command_encoder()?;
        let encoder: &ComputeCommandEncoder = guard.as_ref();
        encoder.set_compute_pipeline_state(&pipeline);
        for (slot, arg) in plan.args.iter().enumerate() {
            match arg {
                KernelArg::Input(i) | KernelArg::Strided(i) => {
                    encoder.set_input_buffer(slot, Some(inputs[*i].buffer), inputs[*i].offset);
                }
                KernelArg::Output(..) => encoder.set_output_buffer(slot, Some(&output), 0),
                // A buffer must be bound.
                KernelArg::Unused => encoder.set_input_buffer(slot, Some(inputs[0].buffer), inputs[0].offset),
                KernelArg::U32s(n) => encoder.set_bytes(slot, n),
                KernelArg::U32(n) => encoder.set_bytes(slot, n),
                KernelArg::F32(n) => encoder.set_bytes(slot, n),
            }
        }
        encoder.dispatch_thread_groups(size(plan.groups), size(plan.threads));
    }
    Ok(MetalStorage::new(output, device.clone(), count, dtype))
}

fn size([width, height, depth]: [usize; 3]) -> MTLSize {
    MTLSize { width, height, depth }
}

/// The default may assume that nothing is infinite; the softmax starts from minus infinity.
fn compile_options() -> Retained<MTLCompileOptions> {
    let options = MTLCompileOptions::new();
    // The first that has bf16; what a system takes by default is its own affair.
    options.setLanguageVersion(MTLLanguageVersion::Version3_1);
    if available!(macos = 15.0) {
        options.setMathMode(MTLMathMode::Safe);
    } else {
        // Older systems know no other way, and do not answer to the newer one.
        #[expect(deprecated, reason = "all that macOS 14 has")]
        options.setFastMathEnabled(false);
    }
    options
}

type Libraries = HashMap<(DeviceId, &'static str), Library>;
type Pipelines = HashMap<(DeviceId, String, Vec<u16>), ComputePipeline>;

/// The compiled kernel of a plan. A source is compiled once a device, a kernel once for each set of constants.
fn pipeline(plan: &KernelPlan, device: &MetalDevice) -> Result<ComputePipeline> {
    static LIBRARIES: LazyLock<Mutex<Libraries>> = LazyLock::new(Mutex::default);
    static PIPELINES: LazyLock<Mutex<Pipelines>> = LazyLock::new(Mutex::default);
    let mut pipelines = PIPELINES.lock().unwrap_or_else(PoisonError::into_inner);
    let key = (device.id(), plan.kernel.clone(), plan.constants.clone());
    if let Some(pipeline) = pipelines.get(&key) {
        return Ok(pipeline.clone());
    }
    let mut libraries = LIBRARIES.lock().unwrap_or_else(PoisonError::into_inner);
    let library = match libraries.get(&(device.id(), plan.source.name)) {
        Some(library) => library.clone(),
        None => {
            let library = device
                .metal_device()
                .new_library_with_source(plan.source.text, Some(&compile_options()))
                .map_err(MetalError::from)?;
            libraries.insert((device.id(), plan.source.name), library.clone());
            library
        }
    };
    let constants = plan.constants.iter().map(|c| Value::U16(*c)).enumerate().collect();
    let function = library
        .get_function(&plan.kernel, Some(&ConstantValues::new(constants)))
        .map_err(MetalError::from)?;
    let pipeline = device
        .metal_device()
        .new_compute_pipeline_state_with_function(&function)
        .map_err(MetalError::from)?;
    let (has, needs) = (pipeline.max_total_threads_per_threadgroup(), plan.threads.iter().product());
    if has < needs {
        bail!("{}: {needs} threads a threadgroup, this device runs {has}", plan.kernel)
    }
    pipelines.insert(key, pipeline.clone());
    Ok(pipeline)
}
