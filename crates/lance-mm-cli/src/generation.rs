//! Options and session of `generate`, `edit`, `video` and `edit-video`.

mod measured;
mod progress;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use lance_mm::checkpoint::{folder_of, is_bundled};
use lance_mm::generate::{Generated, Resolution, Size, check_size};
use lance_mm::image::{LoadOptions, RgbImage};
use lance_mm::tensor::device_name;
use lance_mm::{Checkpoint, GenerateOptions, Guidance, Lance, Renorm, Request, SolverKind};
use serde_json::json;

use crate::args::{ADVANCED, ComputeArgs};
use crate::inputs;
use crate::output::{self, Hints};
use crate::save::Target;
use progress::StageTimer;

/// Published model that generates.
const RECOMMENDED: &str = "mlx-community/Lance-3B-bf16";

/// Memory budget of the VAE decoder with `--low-memory`, in bytes.
const LOW_MEMORY: usize = 128 << 20;

/// Model that generates, and settings of the generation.
#[derive(clap::Args)]
#[command(next_help_heading = "Generation")]
pub(crate) struct GenerationArgs {
    /// Checkpoint with a VAE: a folder, or ORG/NAME[@REVISION] of a model pulled with --all
    #[arg(short, long, value_name = "MODEL", env = "LANCE_MM_MODEL", hide_env_values = true)]
    model: Option<String>,
    /// Inference steps: time and detail
    #[arg(long, value_name = "N", default_value_t = 30, allow_negative_numbers = true)]
    steps: usize,
    /// Guidance scale (CFG); 1 is off and takes half the time
    #[arg(
        short,
        long,
        alias = "guidance-scale",
        value_name = "G",
        default_value_t = 4.0,
        allow_negative_numbers = true
    )]
    guidance: f64,
    /// Random seed of the noise
    #[arg(short, long, value_name = "N", default_value_t = 42)]
    seed: u64,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Decode in slabs of 128 MB: less memory, the same file, a little later
    #[arg(long)]
    low_memory: bool,
    /// Generate with quantized weights, of unknown quality; notes a report of `eval generation --json` that is in the
    /// checkpoint's folder as eval-generation.json
    #[arg(long)]
    allow_quantized: bool,
    /// Print time and peak memory of each stage on standard error
    #[arg(long)]
    stats: bool,
    /// No hints and no progress on standard error
    #[arg(short, long)]
    quiet: bool,
    /// Timestep shift; above 1, more steps are spent near the noise
    #[arg(long, value_name = "S", default_value_t = 3.5, allow_negative_numbers = true)]
    #[arg(help_heading = ADVANCED, hide_short_help = true)]
    shift: f64,
    /// Timesteps with guidance, from 1 (noise) to 0: above FROM, up to TO
    #[arg(long, value_name = "FROM,TO", default_value = "0.4,1", allow_hyphen_values = true)]
    #[arg(help_heading = ADVANCED, hide_short_help = true)]
    guidance_interval: String,
    /// Renormalization of the guided velocity: global, per channel, or none
    #[arg(long, value_enum, default_value = "global", help_heading = ADVANCED, hide_short_help = true)]
    renorm: RenormArg,
    /// Least factor of the renormalization, from 0 to 1
    #[arg(long, value_name = "F", default_value_t = 0.0, allow_negative_numbers = true)]
    #[arg(help_heading = ADVANCED, hide_short_help = true)]
    renorm_minimum: f64,
    /// Solver (sampler): euler as the original, adams-bashforth (second order) for fewer steps
    #[arg(long, visible_alias = "solver", value_enum, default_value = "euler")]
    #[arg(help_heading = ADVANCED, hide_short_help = true)]
    method: MethodArg,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum RenormArg {
    Global,
    Channel,
    None,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum MethodArg {
    Euler,
    AdamsBashforth,
}

impl GenerationArgs {
    /// Options of the library, checked with the prompt as far as that needs no model.
    pub(crate) fn options(&self, prompt: &str) -> Result<GenerateOptions> {
        if prompt.trim().is_empty() {
            bail!("the prompt is empty: expected text");
        }
        let interval = self.guidance_interval.split_once(',');
        let interval = interval.and_then(|(a, b)| Some((a.trim().parse().ok()?, b.trim().parse().ok()?)));
        let Some(interval) = interval else {
            bail!("--guidance-interval: expected two numbers with a comma, found {}", self.guidance_interval)
        };
        let options = GenerateOptions {
            steps: self.steps,
            shift: self.shift,
            solver: match self.method {
                MethodArg::Euler => SolverKind::Euler,
                MethodArg::AdamsBashforth => SolverKind::AdamsBashforth,
            },
            guidance: Guidance {
                scale: self.guidance,
                interval,
                renorm: match self.renorm {
                    RenormArg::Global => Renorm::Global,
                    RenormArg::Channel => Renorm::Channel,
                    RenormArg::None => Renorm::None,
                },
                renorm_min: self.renorm_minimum,
            },
            seed: self.seed,
            allow_quantized: self.allow_quantized,
            ..GenerateOptions::default()
        };
        options.validate()?;
        Ok(options)
    }

    pub(crate) fn hints(&self) -> Hints {
        Hints::new(self.quiet)
    }
}

/// A loaded model and its settings.
pub(crate) struct Session<'a> {
    args: &'a GenerationArgs,
    lance: Lance,
    name: String,
    timer: StageTimer,
}

impl<'a> Session<'a> {
    /// Loads what `--model` names.
    pub(crate) fn open(args: &'a GenerationArgs) -> Result<Self> {
        let Some(name) = args.model.as_deref().filter(|name| !is_bundled(name)) else {
            bail!(
                "--model: expected a checkpoint that generates ({RECOMMENDED}), found only the bundled nano model"
            );
        };
        let hints = args.hints();
        let mut timer = StageTimer::new(args.steps, hints);
        let folder = folder_of(name)?;
        let lance = timer.part("load", || -> Result<Lance> {
            let _busy = hints.busy("loading the model");
            let device = args.compute.open_device()?;
            let checkpoint = Checkpoint::named(name)?.with_device(&device);
            let lance = Lance::new(checkpoint.with_activations(args.compute.activations()))?;
            lance.load_generator()?;
            Ok(if args.low_memory { lance.with_vae_budget(LOW_MEMORY) } else { lance })
        })?;
        if lance.is_quantized() && args.allow_quantized {
            hints.note(&measured::note(name, &folder)?);
        }
        Ok(Self { args, lance, name: name.to_owned(), timer })
    }

    /// Refuses a request that cannot be generated.
    pub(crate) fn check(&self, prompt: &str, request: &Request<'_>, options: &GenerateOptions) -> Result<()> {
        self.lance.check_request(prompt, request, options)?;
        Ok(())
    }

    /// Generates, saves and prints the path.
    pub(crate) fn generate(
        &mut self,
        prompt: &str,
        request: &Request<'_>,
        options: &GenerateOptions,
        target: Target,
    ) -> Result<()> {
        let timer = &mut self.timer;
        let generated = self.lance.generate(prompt, request, options, |event| timer.observe(&event));
        timer.end();
        let generated = generated?;
        let settings = self.settings(request, options, &generated).to_string();
        let seed = options.seed.to_string();
        let software = concat!("lance-mm ", env!("CARGO_PKG_VERSION"));
        let texts = [
            ("prompt", prompt),
            ("seed", seed.as_str()),
            ("settings", settings.as_str()),
            ("Software", software),
        ];
        let hints = self.args.hints();
        let path = self.timer.part("file", || {
            let _busy = hints.busy("writing the file");
            target.save(&generated.frames, &texts)
        })?;
        if self.args.stats {
            output::say_dim(&self.timer.stats());
        }
        output::print_path(&path)
    }

    /// Everything that reproduces the result, without paths of this machine.
    fn settings(
        &self,
        request: &Request<'_>,
        options: &GenerateOptions,
        generated: &Generated,
    ) -> serde_json::Value {
        let first = &generated.frames[0];
        json!({
            "task": request.task().to_string(),
            "model": Path::new(&self.name).file_name().map(|name| name.to_string_lossy()),
            "width": first.width(),
            "height": first.height(),
            "frames": generated.frames.len(),
            "steps": options.steps,
            "shift": options.shift,
            "method": format!("{:?}", options.solver),
            "guidance": options.guidance.scale,
            "guidance_interval": [options.guidance.interval.0, options.guidance.interval.1],
            "renorm": format!("{:?}", options.guidance.renorm),
            "renorm_minimum": options.guidance.renorm_min,
            "seed": options.seed,
            "resolution": request.resolution().map(|Resolution { vae, vit }| json!({"vae": vae, "vit": vit})),
            "activations": self.args.compute.activations().name(),
            "device": device_name(self.lance.device()),
        })
    }
}

/// Reads `WIDTHxHEIGHT`, or one of the ratios that have a preset.
pub(crate) fn size(text: &str, presets: &[(&str, u32, u32)]) -> Result<Size> {
    let preset = presets.iter().find(|(ratio, _, _)| *ratio == text).map(|(_, w, h)| (*w, *h));
    let parsed = text.split_once('x').and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
    let Some((width, height)) = preset.or(parsed) else {
        let ratios: Vec<&str> = presets.iter().map(|(ratio, _, _)| *ratio).collect();
        bail!("--size: expected WIDTHxHEIGHT or one of {}, found {text}", ratios.join(", "));
    };
    let size = Size { width, height };
    match check_size(size) {
        Err(lance_mm::Error::Option { name, expected, found }) => {
            bail!("--size: {name}: expected {expected}, found {found}")
        }
        checked => Ok(checked.map(|()| size)?),
    }
}

/// Resolution of one of upstream's names.
pub(crate) fn resolution(name: &str) -> Result<Resolution> {
    Ok(Resolution::named(name)?)
}

/// Reading of source images and videos.
#[derive(clap::Args, Default)]
pub(crate) struct SourceArgs {
    /// Ignore the EXIF orientation of photographs
    #[arg(long, help_heading = ADVANCED, hide_short_help = true)]
    no_auto_orient: bool,
}

impl SourceArgs {
    /// Decoding of image files.
    pub(crate) fn load_options(&self) -> LoadOptions {
        LoadOptions { auto_orient: !self.no_auto_orient, ..LoadOptions::default() }
    }

    /// Reads an image; `-` is standard input.
    pub(crate) fn image(&self, path: &Path, hints: Hints) -> Result<RgbImage> {
        if path.is_dir() {
            bail!("{}: expected an image file, found a folder", path.display());
        }
        inputs::still(path, &self.load_options(), hints, "edit-video changes all of it")
    }
}

/// `fox.png` as `fox-2.png`.
pub(crate) fn numbered(path: &Path, number: usize) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let end = path.extension().map_or(String::new(), |end| format!(".{}", end.to_string_lossy()));
    path.with_file_name(format!("{stem}-{number}{end}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_width_first_or_a_ratio() {
        let presets = [("16:9", 1024, 576)];
        assert_eq!(size("16:9", &presets).unwrap(), Size { height: 576, width: 1024 });
        assert_eq!(size("848x480", &presets).unwrap(), Size { height: 480, width: 848 });
        for (text, expected) in [
            ("1:7", "--size: expected WIDTHxHEIGHT or one of 16:9, found 1:7"),
            ("850x480", "--size: width: expected a multiple of 16 from 16 to 4096, found 850"),
            ("-16x16", "--size: expected WIDTHxHEIGHT"),
        ] {
            assert!(size(text, &presets).unwrap_err().to_string().starts_with(expected), "{text}");
        }
    }

    #[test]
    fn several_images_are_numbered() {
        assert_eq!(numbered(Path::new("a/fox.b.png"), 2), Path::new("a/fox.b-2.png"));
        assert_eq!(numbered(Path::new("fox"), 10), Path::new("fox-10"));
    }
}
