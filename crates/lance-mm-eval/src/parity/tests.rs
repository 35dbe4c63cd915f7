use super::*;
use crate::logits::LogitReport;
use crate::oracle::answers;
use crate::testing::{broken, checkpoint, demos};

fn lance() -> Lance {
    Lance::new(checkpoint()).unwrap()
}

fn run(data: &Dataset, options: &ParityOptions) -> Result<ParityReport> {
    parity(&lance(), &lance(), data, options, &mut |_, _| {})
}

#[test]
fn a_model_differs_from_itself_by_nothing() {
    for continuation in [Continuation::Greedy, Continuation::Given] {
        let report = run(&demos(), &ParityOptions { continuation, ..Default::default() }).unwrap();
        let LogitReport { kl, top1_agreement, top5_overlap, perplexity_ratio, logit_error, .. } =
            report.all.logits.unwrap();
        assert_eq!((kl.mean, kl.max, logit_error), (0.0, 0.0, 0.0));
        assert_eq!((top1_agreement, top5_overlap, perplexity_ratio), (1.0, 1.0, 1.0));
        let agreement = report.all.agreement.unwrap();
        assert_eq!((agreement.exact, agreement.char_similarity, agreement.length_ratio), (1.0, 1.0, 1.0));
        for score in [report.all.reference.unwrap(), report.all.candidate.unwrap()] {
            assert_eq!((score.answers, score.exact, score.expected), (6, 1.0, 1.0));
        }
        assert_eq!((report.all.samples, report.all.note), (6, Some("small sample")));
    }
}

#[test]
fn greedy_and_given_answers_are_the_same_tokens_where_the_answer_is_right() {
    let tokens = |continuation| {
        let options = ParityOptions { continuation, answers: false, ..Default::default() };
        let report = run(&demos(), &options).unwrap();
        assert!(report.all.agreement.is_none() && report.samples.iter().all(|s| s.reference.is_none()));
        report.samples.iter().map(|sample| sample.tokens).collect::<Vec<_>>()
    };
    assert_eq!(tokens(Continuation::Greedy), tokens(Continuation::Given));
}

#[test]
fn a_description_is_asked_for_as_elsewhere() {
    let mut data = demos().limited(1);
    let mut description = data.samples[0].clone();
    description.question.clear();
    data.samples.push(description);
    assert_eq!(data.by_media(), [[0], [1]]);
    let lance = lance();
    let report = parity(&lance, &lance, &data, &ParityOptions::default(), &mut |_, _| {}).unwrap();
    let alone = answers(&lance, &data, &AskOptions::default(), &mut |_, _| {}).unwrap();
    for (sample, alone) in report.samples.iter().zip(&alone) {
        assert_eq!(sample.reference.as_deref(), Some(alone.text.as_str()));
    }
}

#[test]
fn strata_by_kind_and_questions_about_one_image() {
    let mut data = demos();
    for (i, sample) in data.samples.iter_mut().enumerate() {
        sample.kind = (i > 0).then(|| ["a", "b"][i % 2].to_owned());
    }
    let mut more = data.samples[2].clone();
    more.question = "What color is the license plate?".into();
    more.answer = None;
    data.samples.push(more);
    let options = ParityOptions { leave_out: vec!["b".into()], ..Default::default() };
    let mut told = Vec::new();
    let report = parity(&lance(), &lance(), &data, &options, &mut |done, of| told.push((done, of))).unwrap();
    assert_eq!(told, (0..=7).map(|done| (done, 7)).collect::<Vec<_>>());
    let counts: Vec<(&str, usize)> = report.kinds.iter().map(|s| (s.name.as_str(), s.samples)).collect();
    assert_eq!(counts, [("a", 3), ("b", 3)]);
    let without = report.without.unwrap();
    assert_eq!((without.name.as_str(), without.samples), ("without b", 4));
    assert_eq!(report.kinds[0].candidate.unwrap().answers, 2, "one of them has no answer in the data");
    let hashes: std::collections::HashSet<&str> = report.samples.iter().map(|s| s.hash.as_str()).collect();
    assert_eq!(hashes.len(), 7);
}

#[test]
fn bad_data_is_named() {
    let mut data = demos();
    data.samples[1].answer = None;
    let given = ParityOptions { continuation: Continuation::Given, ..Default::default() };
    assert_eq!(
        run(&data, &given).unwrap_err().to_string(),
        "demo_percentage.png: answer: expected a text, found no such field"
    );
    data.samples[1].answer = Some("a<|im_start|>".into());
    assert!(run(&data, &given).unwrap_err().to_string().contains("found the special token <|im_start|>"));
    data.samples[1].media =
        crate::dataset::Media::Images(vec![crate::dataset::ImageSource::File("/nonexistent/a.png".into())]);
    assert!(run(&data, &given).unwrap_err().to_string().contains(": /nonexistent/a.png: "));
}

#[test]
fn other_tokens_are_refused() {
    let files = crate::testing::NANO;
    let json = String::from_utf8(files.tokenizer.to_vec()).unwrap();
    let ours = Tokenizer::from_json(files.tokenizer, "ours").unwrap();
    assert!(require_same_tokens(&ours, &ours).is_ok());
    let special = json.replace("<|object_ref_start|>", "<|object_ref_other|>");
    let other = Tokenizer::from_json(special.as_bytes(), "other").unwrap();
    let error = require_same_tokens(&ours, &other).unwrap_err().to_string();
    assert!(error.starts_with("other: expected the tokens of ours, found another token 5"), "{error}");
}

#[test]
fn logits_that_are_not_finite_are_an_error_with_sample_and_model() {
    let data = demos().limited(1);
    let options = ParityOptions { answers: false, continuation: Continuation::Given, ..Default::default() };
    for (reference, candidate, model) in [(lance(), broken(), "candidate"), (broken(), lance(), "reference")]
    {
        let error = parity(&reference, &candidate, &data, &options, &mut |_, _| {}).unwrap_err().to_string();
        let expected = format!("demo_chart.png: {model}: logits: expected finite numbers, found NaN");
        assert_eq!(error, expected);
    }
    let options = ParityOptions::default();
    let error = parity(&lance(), &broken(), &data, &options, &mut |_, _| {}).unwrap_err().to_string();
    assert_eq!(error, "demo_chart.png: candidate: logits: expected finite numbers, found NaN");
}
