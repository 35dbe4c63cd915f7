//! A very small Lance that was really trained, as data, in the published MLX layout: the UND expert in 4 bits and
//! groups of 128 like the published `Lance-3B-AWQ-INT4`, the vision transformer in bf16; 4.5 MB.
//!
//! The 4 bits are this project's own: `cargo xtask nano` makes them from `tests/fixtures/nano-bf16` in the
//! repository and [`CALIBRATION`].
//!
//! It answers questions about simple drawn pictures (charts, plates, amounts, shapes, a few landmarks) and
//! nothing else. It exists so that the program and its tests run without a download, and so that loss by
//! quantization shows in answers.

/// `config.json`.
pub static CONFIG: &[u8] = include_bytes!("../assets/config.json");
/// `generation_config.json`.
pub static GENERATION_CONFIG: &[u8] = include_bytes!("../assets/generation_config.json");
/// `tokenizer.json`.
pub static TOKENIZER: &[u8] = include_bytes!("../assets/tokenizer.json");
/// `model.safetensors`.
pub static MODEL: &[u8] = include_bytes!("../assets/model.safetensors");
/// `vit.safetensors`.
pub static VIT: &[u8] = include_bytes!("../assets/vit.safetensors");

/// A picture with a question that the model answers right.
#[derive(Clone, Copy, Debug)]
pub struct Demo {
    /// File name.
    pub file: &'static str,
    /// The picture, a PNG file.
    pub png: &'static [u8],
    /// The question.
    pub question: &'static str,
    /// The answer.
    pub answer: &'static str,
}

/// A picture below `assets` with its question and answer.
macro_rules! demo {
    ($file:literal, $question:literal, $answer:literal) => {
        demo!("", $file, $question, $answer)
    };
    ($folder:literal, $file:literal, $question:literal, $answer:literal) => {
        Demo {
            file: $file,
            png: include_bytes!(concat!("../assets/", $folder, $file)),
            question: $question,
            answer: $answer,
        }
    };
}

mod calibration;

pub use calibration::CALIBRATION;

/// One picture of each kind.
pub static DEMOS: [Demo; 6] = [
    demo!("demo_chart.png", "Is the largest segment greater than the sum of all the other segments?", "No"),
    demo!("demo_percentage.png", "What percentage of respondents chose the black bar?", "20%"),
    demo!("demo_plate.png", "What is the license plate number of the car?", "BX62 BFY"),
    demo!("demo_currency.png", "How much does it cost?", "$1.8 million"),
    demo!(
        "demo_landmark.png",
        "What is in this image?",
        "The image shows the Colosseum in Rome under a night sky."
    ),
    demo!(
        "demo_eclipse.png",
        "Describe this picture.",
        "A solar eclipse: a black moon covers the sun with a yellow glow around it."
    ),
];
