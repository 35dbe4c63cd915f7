//! How well a model predicts a text.

use lance_mm_models::{Cursor, Segment, Sequence};
use serde::Serialize;

use super::SampleProgress;
use super::logits::{each_row, nll};
use crate::error::{Error, Result};
use lance_mm_pipelines::Lance;

/// Options of [`perplexity()`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerplexityOptions {
    /// Tokens of a window; without one 1024, or all that the model can hold if those are fewer.
    pub window: Option<usize>,
}

/// Tokens of a window unless the options say otherwise.
const WINDOW: usize = 1024;

/// Perplexity of a text.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PerplexityReport {
    /// Tokens of the text.
    pub tokens: usize,
    /// Those that were predicted: all but the first of each window.
    pub predicted: usize,
    /// Tokens of a window.
    pub window: usize,
    /// Windows.
    pub windows: usize,
    /// Mean of `−ln p` of the predicted tokens, nats.
    pub nll: f64,
    /// `exp(nll)`.
    pub perplexity: f64,
}

/// Perplexity of a text without a prompt, in windows that are independent of each other.
///
/// # Errors
/// A window below 2 or above what the model can hold, a text of less than two tokens, special tokens in it.
pub fn perplexity(
    lance: &Lance,
    text: &str,
    options: &PerplexityOptions,
    progress: &mut SampleProgress<'_>,
) -> Result<PerplexityReport> {
    let max = lance.config().max_position_embeddings;
    let window = options.window.unwrap_or(WINDOW.min(max));
    if !(2..=max).contains(&window) {
        return Err(Error::option("window", format!("2 to {max} tokens"), window));
    }
    if let Some(token) = lance.tokenizer().special_in(text) {
        return Err(Error::data("text", format!("expected plain text, found the special token {token}")));
    }
    let ids = lance.tokenizer().encode(text)?;
    // A window of one token, at the end, predicts nothing.
    let windows: Vec<&[u32]> = ids.chunks(window).filter(|ids| ids.len() > 1).collect();
    let (mut sum, mut predicted) = (0.0, 0);
    progress(0, windows.len());
    for (i, ids) in windows.iter().enumerate() {
        let nll = window_nll(lance, ids);
        sum += nll.map_err(|error| Error::data(format!("window {}", i + 1), error))?;
        predicted += ids.len() - 1;
        progress(i + 1, windows.len());
    }
    if predicted == 0 {
        let found = ids.len();
        return Err(Error::data("text", format!("expected at least 2 tokens, found {found}")));
    }
    let nll = sum / predicted as f64;
    let perplexity = nll.exp();
    if !perplexity.is_finite() {
        return Err(Error::data("perplexity", format!("expected a finite one, found exp({nll})")));
    }
    Ok(PerplexityReport { tokens: ids.len(), predicted, window, windows: windows.len(), nll, perplexity })
}

/// Sum of `−ln p` of all ids but the first.
fn window_nll(lance: &Lance, ids: &[u32]) -> Result<f64> {
    let llm = lance.llm();
    let fed = Segment::Text(ids[..ids.len() - 1].to_vec());
    let sequence = Sequence::new(&[fed], &llm.config().layout(), Cursor::default());
    let hidden = llm.forward(&llm.embed(&sequence, &[])?, &sequence, &mut llm.cache())?;
    let normed = llm.norm(&hidden, &sequence)?;
    let mut sum = 0.0;
    each_row(llm, &normed, lance.tokenizer().vocab_limit() as usize, |i, logits| {
        sum += nll(logits, ids[i + 1])?;
        Ok(())
    })?;
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{broken, checkpoint};

    #[test]
    fn logits_that_are_not_finite_are_an_error_with_their_window() {
        let error = perplexity(&broken(), "A red star", &PerplexityOptions::default(), &mut |_, _| {})
            .unwrap_err()
            .to_string();
        assert_eq!(error, "window 1: logits: expected finite numbers, found NaN");
    }

    #[test]
    fn a_known_answer_is_likelier_than_noise() {
        let lance = Lance::new(checkpoint()).unwrap();
        let of = |text: &str, window| perplexity(&lance, text, &PerplexityOptions { window }, &mut |_, _| {});
        let sentence = of("A solar eclipse: a black moon covers the sun.", Some(300)).unwrap();
        let noise = of("zq#x!!vk ~ Jw\\q", None).unwrap();
        assert!(sentence.perplexity < noise.perplexity, "{sentence:?} {noise:?}");
        assert_eq!((sentence.windows, sentence.predicted), (1, sentence.tokens - 1));

        let cut = of("A solar eclipse: a black moon covers the sun.", Some(4)).unwrap();
        assert_eq!(cut.tokens, sentence.tokens);
        assert!(cut.windows > 1 && cut.predicted < sentence.predicted && cut.nll > sentence.nll);
        let steps = of("abc", Some(2)).unwrap();
        assert!(steps.nll.is_finite());

        for (text, window, expected) in [
            ("abc", 1, "option window: expected 2 to 512 tokens, found 1"),
            ("", 16, "text: expected at least 2 tokens, found 0"),
            ("a<|im_end|>", 16, "text: expected plain text, found the special token <|im_end|>"),
        ] {
            let error = of(text, Some(window)).unwrap_err().to_string();
            assert!(error.starts_with(expected.split(" 512").next().unwrap()), "{error}");
        }
    }
}
