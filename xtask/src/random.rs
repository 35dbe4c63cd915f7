//! `cargo xtask random DST`: a checkpoint of any size with random weights, to measure with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use lance_mm::models::{
    Config, Experts, LatentLayers, Llm, Vae, VaeConfig, Vit, is_generation, latent, required,
};
use safetensors::Dtype;
use serde_json::{Value, json};

use lance_mm_convert::safetensors_file::{self, TensorEntry};
use lance_mm_pipelines::staged::StagedFolder;

/// Write a checkpoint with random weights in the MLX layout.
#[derive(Args)]
pub(crate) struct Random {
    /// Folder to write.
    dst: PathBuf,
    /// `real` (Lance-3B), `nano`, or a config.json.
    #[arg(long, default_value = "nano")]
    size: String,
    /// Form of the large matrices.
    #[arg(long, value_enum, default_value = "bf16")]
    format: Format,
    /// Bits of linear layers with `--format int4` or `awq`, and of everything else that the format does not widen.
    #[arg(long, default_value_t = 4, value_parser = widths([2, 3, 4, 5, 6, 8]))]
    bits: usize,
    /// Pack the vision encoder in 8 or 4 bits, as `quantize --vit` does.
    #[arg(long, value_parser = widths([4, 8]))]
    vit: Option<usize>,
    /// Seed of the values.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Leave out what only generation reads: the GEN expert and the VAE.
    #[arg(long)]
    und_only: bool,
    /// Folder whose tokenizer files are copied.
    #[arg(long)]
    tokenizer: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Norms in F32, the rest in BF16, as published.
    Bf16,
    /// Linears, embedding and head in `--bits`, groups of 128 (or the largest that divides), as published in 4 bits.
    Int4,
    /// As `quantize --recipe awq`: the head two bits wider, head and embedding in groups of 64.
    Awq,
    /// As `quantize --recipe awq-mixed`: linears of 3, 4, 5 and 6 bits in groups of 64, 4 in the mean and a half.
    AwqMixed,
}

impl Format {
    /// Bits and largest group of a module; `None` if all stay in bf16.
    fn scheme(self, module: &str, bits: usize) -> Option<(usize, usize)> {
        match (self, module) {
            (Self::Bf16, _) => None,
            (Self::Int4, _) => Some((bits, 128)),
            (Self::Awq, "lm_head") => Some((if bits < 6 { bits + 2 } else { 8 }, 64)),
            (Self::Awq, "embed_tokens") => Some((bits, 64)),
            (Self::Awq, _) => Some((bits, 128)),
            (Self::AwqMixed, "lm_head") => Some((6, 64)),
            (Self::AwqMixed, "embed_tokens") => Some((4, 64)),
            // The same for every layer: matrices that are multiplied by the same activations differ too.
            (Self::AwqMixed, _) => {
                let sum: usize = module.bytes().filter(|b| !b.is_ascii_digit()).map(usize::from).sum();
                Some(([3, 4, 5, 6][sum % 4], 64))
            }
        }
    }
}

/// Parses one of some numbers of bits.
fn widths<const N: usize>(allowed: [usize; N]) -> impl Fn(&str) -> Result<usize> + Clone + Send + Sync {
    move |text| {
        let bits = text.parse().ok().filter(|bits| allowed.contains(bits));
        bits.with_context(|| format!("expected one of {allowed:?}"))
    }
}

impl Random {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        let mut json = self.config()?;
        // What a configuration says of its own weights is not true of random ones.
        for key in ["lance_mm", "quantization", "quantization_config"] {
            json.as_object_mut().map(|object| object.remove(key));
        }
        if self.und_only {
            json["lance_mm"]["experts"] = json!(["und"]);
        }
        if self.vit.is_some() {
            // Whole groups, as `quantize` pads them.
            let width = json["vision_config"]["intermediate_size"]
                .as_u64()
                .context("vision_config.intermediate_size")?;
            json["vision_config"]["intermediate_size"] = width.next_multiple_of(64).into();
        }
        let config = Config::from_json(json.to_string().as_bytes())?;
        let experts = if self.und_only { Experts::Und } else { Experts::Both };
        let llm = required(|weights| Llm::load(&config, weights, experts).map(drop))?;
        let latents = if self.und_only {
            Vec::new()
        } else {
            required(|weights| LatentLayers::load(&config, weights).map(drop))?
        };
        let llm: Vec<_> = llm.into_iter().chain(latents).collect();
        let vit = required(|weights| Vit::load(&config.vision, weights).map(drop))?;
        let vae = if self.und_only {
            Vec::new()
        } else {
            required(|weights| Vae::load(&self.vae(), weights).map(drop))?
        };
        let name = || self.dst.display().to_string();
        let folder = StagedFolder::create(&self.dst).with_context(name)?;
        let dir = folder.path();
        if self.format != Format::Bf16 {
            let quantization = self.quantization(&llm);
            json["quantization"] = quantization.clone();
            json["quantization_config"] = quantization;
        }
        fs::write(dir.join("config.json"), serde_json::to_string_pretty(&json)? + "\n")?;
        let side = config.max_latent_size;
        let stored: Vec<Stored> =
            llm.iter().flat_map(|(name, shape)| self.stored(name, shape, side)).collect();
        write_file(&dir.join("model.safetensors"), &stored, self.seed)?;
        for (file, part, seed) in [("vit", &vit, 1), ("vae", &vae, 2)] {
            if part.is_empty() {
                continue;
            }
            let scheme = self.vit.filter(|_| file == "vit").map(|bits| (bits, 64));
            let stored: Vec<Stored> =
                part.iter().flat_map(|(name, shape)| packed(name, shape, scheme)).collect();
            write_file(&dir.join(format!("{file}.safetensors")), &stored, self.seed ^ seed)?;
        }
        self.copy_tokenizer(dir)?;
        folder.commit().with_context(name)?;
        println!("{}: {} tensors", self.dst.display(), llm.len() + vit.len() + vae.len());
        Ok(ExitCode::SUCCESS)
    }

    fn config(&self) -> Result<Value> {
        match self.size.as_str() {
            "real" => Ok(real_config()),
            "nano" => Ok(serde_json::from_slice(lance_mm_nano::CONFIG)?),
            path => {
                let text = fs::read(path)
                    .with_context(|| format!("--size {path}: neither real, nano nor a config.json"))?;
                serde_json::from_slice(&text).with_context(|| path.to_owned())
            }
        }
    }

    /// The published VAE, or one as narrow as the rest.
    fn vae(&self) -> VaeConfig {
        match self.size.as_str() {
            "real" => VaeConfig::default(),
            _ => VaeConfig { encoder_width: 4, decoder_width: 6 },
        }
    }

    /// The tensors that hold one matrix or vector.
    fn stored(&self, name: &str, shape: &[usize], side: usize) -> Vec<Stored> {
        if name.starts_with("latent_pos_embed.") {
            return vec![Stored::new(name.to_owned(), Kind::Positions(side), shape.to_vec())];
        }
        let norm = name.contains("norm");
        let &[_, cols] = shape else {
            return vec![Stored::new(
                name.to_owned(),
                if norm { Kind::F32 } else { Kind::Bf16 },
                shape.to_vec(),
            )];
        };
        packed(name, shape, self.scheme(name, cols))
    }

    /// Scheme of a matrix of the language model.
    fn scheme(&self, name: &str, cols: usize) -> Option<(usize, usize)> {
        // The GEN expert is quantized in the published file, the latent layers are not.
        if is_generation(name) && !name.contains("_moe_gen") {
            return None;
        }
        let (bits, largest) = self.format.scheme(name.strip_suffix(".weight")?, self.bits)?;
        let group = [128, 64, 32].into_iter().find(|g| *g <= largest && cols.is_multiple_of(*g))?;
        Some((bits, group))
    }

    /// The settings of `config.json`: linears at the top, an entry for each module that differs.
    fn quantization(&self, tensors: &[(String, Vec<usize>)]) -> Value {
        let top = (if self.format == Format::AwqMixed { 4 } else { self.bits }, 128);
        let mut quantization = json!({"group_size": top.1, "bits": top.0, "mode": "affine"});
        if self.format == Format::Int4 {
            return quantization;
        }
        for (name, shape) in tensors {
            let (Some(module), &[_, cols]) = (name.strip_suffix(".weight"), &shape[..]) else { continue };
            if let Some((bits, group)) = self.scheme(name, cols).filter(|scheme| *scheme != top) {
                quantization[module] = json!({"bits": bits, "group_size": group});
            }
        }
        quantization
    }

    fn copy_tokenizer(&self, dir: &Path) -> Result<()> {
        match (&self.tokenizer, self.size.as_str()) {
            (Some(from), _) => {
                let path = from.join("tokenizer.json");
                fs::copy(&path, dir.join("tokenizer.json")).with_context(|| path.display().to_string())?;
            }
            (None, "nano") => fs::write(dir.join("tokenizer.json"), lance_mm_nano::TOKENIZER)?,
            (None, _) => {
                bail!("--tokenizer DIR: expected a folder with the tokenizer.json of this vocabulary")
            }
        }
        Ok(())
    }
}

/// The tensors of a matrix or vector, packed with a scheme that fits.
fn packed(name: &str, shape: &[usize], scheme: Option<(usize, usize)>) -> Vec<Stored> {
    let dense = || vec![Stored::new(name.to_owned(), Kind::Bf16, shape.to_vec())];
    let (Some((bits, group)), &[rows, cols], Some(module)) = (scheme, shape, name.strip_suffix(".weight"))
    else {
        return dense();
    };
    if !cols.is_multiple_of(group) {
        return dense();
    }
    let (step, groups) = (Step { cols, bits }, vec![rows, cols / group]);
    vec![
        Stored::new(name.to_owned(), Kind::Words, vec![rows, cols * bits / 32]),
        Stored::new(format!("{module}.scales"), Kind::Scale(step), groups.clone()),
        Stored::new(format!("{module}.biases"), Kind::Bias(step), groups),
    ]
}

struct Stored {
    name: String,
    kind: Kind,
    shape: Vec<usize>,
}

#[derive(Clone, Copy)]
enum Kind {
    F32,
    Bf16,
    Words,
    Scale(Step),
    /// Minus half of all steps, so that values centre on zero.
    Bias(Step),
    /// The table of latent positions, which is no parameter, for frames of this side.
    Positions(usize),
}

impl Stored {
    fn new(name: String, kind: Kind, shape: Vec<usize>) -> Self {
        Self { name, kind, shape }
    }

    fn dtype(&self) -> Dtype {
        match self.kind {
            Kind::F32 => Dtype::F32,
            Kind::Words => Dtype::U32,
            _ => Dtype::BF16,
        }
    }

    fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Values of the size that keeps a deep network's activations near one.
    fn fill(&self, seed: u64, out: &mut Vec<u8>) {
        out.clear();
        let fan_in = self.shape[1..].iter().product::<usize>().max(1) as f32;
        let mut state = Mix(seed);
        let spread = 1.7 / fan_in.sqrt();
        if let Kind::Positions(side) = self.kind {
            let (rows, width) = (self.shape[0], self.shape[1]);
            let row = |index| latent::position_row(index, side, width);
            return out.extend((0..rows).flat_map(row).flat_map(|v| half::bf16::from_f32(v).to_le_bytes()));
        }
        for _ in 0..self.count() {
            match self.kind {
                Kind::F32 => out.extend((1.0 + 0.1 * state.unit()).to_le_bytes()),
                Kind::Bf16 if ["norm", "ln_q", "gamma"].iter().any(|part| self.name.contains(part)) => {
                    out.extend(bf16(1.0 + 0.1 * state.unit()));
                }
                Kind::Bf16 if self.shape.len() == 1 => out.extend(bf16(0.1 * state.unit())),
                Kind::Bf16 => out.extend(bf16(spread * state.unit())),
                Kind::Words => out.extend((state.next() as u32).to_le_bytes()),
                Kind::Scale(step) => out.extend(bf16(step.size())),
                Kind::Bias(step) => out.extend(bf16(-step.half_range() * step.size())),
                Kind::Positions(_) => {}
            }
        }
    }
}

/// Even levels whose spread is that of the dense weights.
#[derive(Clone, Copy)]
struct Step {
    cols: usize,
    bits: usize,
}

impl Step {
    fn half_range(self) -> f32 {
        ((1u32 << self.bits) - 1) as f32 / 2.0
    }

    fn size(self) -> f32 {
        1.7 / (self.cols as f32).sqrt() / self.half_range()
    }
}

fn bf16(value: f32) -> [u8; 2] {
    let [_, _, low, high] = value.to_le_bytes();
    [low, high]
}

/// splitmix64.
struct Mix(u64);

impl Mix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// Writes tensor by tensor: memory is that of the largest one.
fn write_file(path: &Path, stored: &[Stored], seed: u64) -> Result<()> {
    let entry = |t: &Stored| TensorEntry { name: t.name.clone(), dtype: t.dtype(), shape: t.shape.clone() };
    let entries: Vec<TensorEntry> = stored.iter().map(entry).collect();
    let mut bytes = Vec::new();
    safetensors_file::write(path, "mlx", &entries, |i, out| {
        stored[i].fill(seed.wrapping_mul(1_000_003).wrapping_add(i as u64), &mut bytes);
        Ok(out.write_all(&bytes)?)
    })
}

/// The published configuration of Lance-3B.
fn real_config() -> Value {
    json!({
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2,
        "intermediate_size": 11008, "vocab_size": 151936, "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "max_position_embeddings": 128_000, "tie_word_embeddings": false, "hidden_act": "silu",
        "bos_token_id": 151643, "eos_token_id": 151645, "vision_start_token_id": 151652,
        "vision_end_token_id": 151653, "vision_token_id": 151654, "image_token_id": 151655,
        "video_token_id": 151656,
        "vision_config": {
            "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "in_chans": 3,
            "out_hidden_size": 2048, "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14,
            "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2,
            "temporal_patch_size": 2
        }
    })
}
