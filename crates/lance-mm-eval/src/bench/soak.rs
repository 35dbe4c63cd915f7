//! Memory over many questions in one process.

use lance_mm_pipelines::{AskOptions, DecodeOptions, Lance};
use serde::Serialize;

use crate::error::{Error, Result};
use crate::oracle::answer;
use crate::{Dataset, SampleProgress, memory};

/// Points at which memory is read.
const POINTS: usize = 10;

/// Options of [`soak`].
#[derive(Clone, Debug, PartialEq)]
pub struct SoakOptions {
    /// Questions, asked in turn. Images are read, decoded and encoded for each.
    pub data: Dataset,
    /// Number of questions, at least 10.
    pub questions: usize,
    /// Most tokens of an answer.
    pub max_new_tokens: usize,
}

/// Memory over many questions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SoakReport {
    /// Ten readings, evenly spaced; the first after a tenth of the questions.
    pub points: Vec<SoakPoint>,
    /// Least-squares slope of the anonymous memory over the points: 0 without a leak, but for the noise of pages.
    pub bytes_per_question: f64,
}

/// One reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SoakPoint {
    /// Questions answered so far.
    pub questions: usize,
    /// Resident memory in bytes, mapped files included.
    pub resident: u64,
    /// The part that is the process's own.
    pub anonymous: u64,
}

/// Asks many questions and reads the memory of the process ten times.
///
/// # Errors
/// Fewer than ten questions, no data, a system that does not report memory, and as
/// [`answers`](crate::oracle::answers).
pub fn soak(lance: &Lance, options: &SoakOptions, progress: &mut SampleProgress<'_>) -> Result<SoakReport> {
    let SoakOptions { data, questions, max_new_tokens } = options;
    if *questions < POINTS {
        return Err(Error::option("questions", format!("at least {POINTS}"), questions));
    }
    if data.samples.is_empty() {
        return Err(Error::data(&data.name, "expected questions, found none"));
    }
    let decode = DecodeOptions { max_new_tokens: *max_new_tokens, ..DecodeOptions::default() };
    let options = AskOptions { decode, ..AskOptions::default() };
    let mut points = Vec::with_capacity(POINTS);
    progress(0, *questions);
    for (i, sample) in data.samples.iter().cycle().take(*questions).enumerate() {
        answer(lance, sample, &options).map_err(|error| sample.located(error))?;
        let done = i + 1;
        if done == questions * (points.len() + 1) / POINTS {
            let Some(now) = memory::now() else {
                return Err(Error::data("memory", "expected a system that reports it, found none"));
            };
            let resident = now.anonymous + now.file;
            points.push(SoakPoint { questions: done, resident, anonymous: now.anonymous });
        }
        progress(done, *questions);
    }
    Ok(SoakReport { bytes_per_question: slope(&points), points })
}

/// Least-squares slope of the anonymous memory.
fn slope(points: &[SoakPoint]) -> f64 {
    let n = points.len() as f64;
    let mean = |value: fn(&SoakPoint) -> f64| points.iter().map(value).sum::<f64>() / n;
    let (x, y) = (mean(|p| p.questions as f64), mean(|p| p.anonymous as f64));
    let products = points.iter().map(|p| (p.questions as f64 - x) * (p.anonymous as f64 - y));
    let squares = points.iter().map(|p| (p.questions as f64 - x).powi(2));
    products.sum::<f64>() / squares.sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{checkpoint, demos};

    #[test]
    fn the_slope_is_bytes_a_question() {
        let point = |i: usize, anonymous: u64| SoakPoint { questions: 7 * i, resident: 0, anonymous };
        let leak: Vec<SoakPoint> = (1..=10).map(|i| point(i, 5_000_000 + 7 * 13 * i as u64)).collect();
        assert!((slope(&leak) - 13.0).abs() < 1e-6);
        let level: Vec<SoakPoint> = (1..=10).map(|i| point(i, 4096 * (i as u64 % 2))).collect();
        assert!(slope(&level).abs() < 40.0);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn memory_is_read_ten_times() {
        let lance = Lance::new(checkpoint()).unwrap();
        let options = |questions, data| SoakOptions { data, questions, max_new_tokens: 1 };
        let mut told = 0;
        let report = soak(&lance, &options(11, demos()), &mut |done, _| told = done).unwrap();
        let questions: Vec<usize> = report.points.iter().map(|point| point.questions).collect();
        assert_eq!((questions, told), (vec![1, 2, 3, 4, 5, 6, 7, 8, 9, 11], 11));
        assert!(report.points.iter().all(|point| point.anonymous > 0 && point.resident > point.anonymous));
        assert!(report.bytes_per_question.is_finite());
        let error = |options| soak(&lance, &options, &mut |_, _| {}).unwrap_err().to_string();
        assert_eq!(error(options(9, demos())), "option questions: expected at least 10, found 9");
        let nothing = Dataset { name: "d.jsonl".into(), samples: Vec::new() };
        assert_eq!(error(options(10, nothing)), "d.jsonl: expected questions, found none");
    }
}
