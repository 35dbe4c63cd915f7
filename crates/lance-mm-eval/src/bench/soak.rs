//! Memory over many questions in one process.

use lance_mm_pipelines::{AskOptions, DecodeOptions, Lance};
use serde::Serialize;

use crate::error::{Error, Result};
use crate::oracle::answer;
use crate::{Dataset, SampleProgress, memory};

/// Points of a report.
const POINTS: usize = 10;

/// Fewest questions that a slope is fitted to.
const LEAST: usize = 40;

/// Options of [`soak`].
#[derive(Clone, Debug, PartialEq)]
pub struct SoakOptions {
    /// Questions, asked in turn. Images are read, decoded and encoded for each.
    pub data: Dataset,
    /// Number of questions, at least 40.
    pub questions: usize,
    /// Most tokens of an answer.
    pub max_new_tokens: usize,
}

/// Memory over many questions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SoakReport {
    /// Means of each tenth of the questions.
    pub points: Vec<SoakPoint>,
    /// Least-squares slope of the anonymous memory after each question, the first tenth aside: 0 without a leak, but
    /// for what the allocator keeps at one moment and returns at another.
    pub bytes_per_question: f64,
    /// Standard error of the slope. It takes readings as independent of each other and is too small where they are not.
    pub standard_error: f64,
}

/// Memory over a tenth of the questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SoakPoint {
    /// Questions answered at its end.
    pub questions: usize,
    /// Mean resident memory in bytes, mapped files included.
    pub resident: u64,
    /// The part that is the process's own.
    pub anonymous: u64,
}

/// Asks many questions and reads the memory of the process after each.
///
/// # Errors
/// Fewer than 40 questions, no data, a system that does not report memory, and as
/// [`answers`](crate::oracle::answers).
pub fn soak(lance: &Lance, options: &SoakOptions, progress: &mut SampleProgress<'_>) -> Result<SoakReport> {
    let SoakOptions { data, questions, max_new_tokens } = options;
    if *questions < LEAST {
        return Err(Error::option("questions", format!("at least {LEAST}"), questions));
    }
    if data.samples.is_empty() {
        return Err(Error::data(&data.name, "expected questions, found none"));
    }
    let decode = DecodeOptions { max_new_tokens: *max_new_tokens, ..DecodeOptions::default() };
    let options = AskOptions { decode, ..AskOptions::default() };
    let mut samples = data.samples.iter().cycle();
    let mut fit = LineFit::default();
    let mut points = Vec::with_capacity(POINTS);
    progress(0, *questions);
    let mut done = 0;
    for tenth in 1..=POINTS {
        let start = done;
        // Sums, since a list of readings would grow itself.
        let (mut resident, mut anonymous) = (0, 0);
        while done < questions * tenth / POINTS {
            let Some(sample) = samples.next() else { break };
            answer(lance, sample, &options).map_err(|error| sample.located(error))?;
            done += 1;
            let Some(now) = memory::now() else {
                return Err(Error::data("memory", "expected a system that reports it, found none"));
            };
            resident += now.anonymous + now.file;
            anonymous += now.anonymous;
            if tenth > 1 {
                fit.push(done as f64, now.anonymous as f64);
            }
            progress(done, *questions);
        }
        let n = (done - start) as u64;
        points.push(SoakPoint { questions: done, resident: resident / n, anonymous: anonymous / n });
    }
    let (bytes_per_question, standard_error) = fit.slope();
    Ok(SoakReport { points, bytes_per_question, standard_error })
}

/// Running means and sums of squared deviations of points, for a line through them.
#[derive(Default)]
struct LineFit {
    n: f64,
    mean: [f64; 2],
    xx: f64,
    xy: f64,
    yy: f64,
}

impl LineFit {
    fn push(&mut self, x: f64, y: f64) {
        self.n += 1.0;
        let (dx, dy) = (x - self.mean[0], y - self.mean[1]);
        self.mean = [self.mean[0] + dx / self.n, self.mean[1] + dy / self.n];
        self.xx += dx * (x - self.mean[0]);
        self.xy += dx * (y - self.mean[1]);
        self.yy += dy * (y - self.mean[1]);
    }

    /// Least-squares slope and its standard error.
    fn slope(&self) -> (f64, f64) {
        let slope = self.xy / self.xx;
        let residuals = (self.yy - slope * self.xy).max(0.0);
        (slope, (residuals / (self.n - 2.0) / self.xx).sqrt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{checkpoint, demos};

    #[test]
    fn a_leak_is_told_from_noise() {
        let slope = |leak: f64| {
            let mut fit = LineFit::default();
            // Noise of 8 MB without a period, around a line.
            (0..900).for_each(|i| {
                fit.push(f64::from(i), 5e7 + leak * f64::from(i) + 8e6 * (f64::from(i * i) * 0.37).sin())
            });
            fit.slope()
        };
        let (level, leaking) = (slope(0.0), slope(13e3));
        assert!((leaking.0 - level.0 - 13e3).abs() < 1e-3, "{level:?} {leaking:?}");
        assert!(
            level.0.abs() < 3.0 * level.1 && level.1 < 2e3 && leaking.0 > 3.0 * leaking.1,
            "{level:?} {leaking:?}"
        );
        let mut line = LineFit::default();
        [1.0, 2.0, 4.0].iter().for_each(|x| line.push(*x, 3.0 * x - 1.0));
        let (slope, error) = line.slope();
        assert!((slope - 3.0).abs() < 1e-12 && error < 1e-6);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn memory_is_reported_at_ten_points() {
        let lance = Lance::new(checkpoint()).unwrap();
        let options = |questions, data| SoakOptions { data, questions, max_new_tokens: 1 };
        let mut told = 0;
        let report = soak(&lance, &options(41, demos()), &mut |done, _| told = done).unwrap();
        let questions: Vec<usize> = report.points.iter().map(|point| point.questions).collect();
        assert_eq!((questions, told), (vec![4, 8, 12, 16, 20, 24, 28, 32, 36, 41], 41));
        assert!(report.points.iter().all(|point| point.anonymous > 0 && point.resident > point.anonymous));
        assert!(report.bytes_per_question.is_finite() && report.standard_error >= 0.0);
        let error = |options| soak(&lance, &options, &mut |_, _| {}).unwrap_err().to_string();
        assert_eq!(error(options(39, demos())), "option questions: expected at least 40, found 39");
        let nothing = Dataset { name: "d.jsonl".into(), samples: Vec::new() };
        assert_eq!(error(options(40, nothing)), "d.jsonl: expected questions, found none");
    }
}
