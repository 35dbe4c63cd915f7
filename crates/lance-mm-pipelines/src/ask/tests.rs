use lance_mm_image::LoadOptions;

use super::*;
use crate::testing::checkpoint;

fn lance() -> Lance {
    Lance::new(checkpoint()).unwrap()
}

fn image_of(index: usize) -> RgbImage {
    image::decode(lance_mm_nano::DEMOS[index].png, "demo", &LoadOptions::default()).unwrap()
}

fn decoding(decode: DecodeOptions) -> AskOptions {
    AskOptions { decode, ..Default::default() }
}

fn at_most(max_new_tokens: usize) -> AskOptions {
    decoding(DecodeOptions { max_new_tokens, ..Default::default() })
}

#[test]
fn all_demo_questions_are_answered_right() {
    let lance = lance();
    for (i, demo) in lance_mm_nano::DEMOS.iter().enumerate() {
        let answer = lance.ask(&image_of(i), demo.question, &AskOptions::default()).unwrap();
        assert_eq!(answer.text, demo.answer, "{}", demo.file);
        assert_eq!(answer.finish_reason, FinishReason::StopToken);
        assert_eq!(answer.seed, None);
    }
}

#[test]
fn a_context_answers_as_single_questions_do_in_any_order() {
    let lance = lance();
    let options = AskOptions::default();
    let image = lance.encode_image(&image_of(2), &options).unwrap();
    let questions =
        ["What is the license plate number of the car?", "Describe this picture.", "What is in this image?"];
    let alone: Vec<String> =
        questions.iter().map(|q| lance.ask(&image_of(2), q, &options).unwrap().text).collect();
    for order in [[0, 1, 2], [2, 0, 1], [1, 1, 0]] {
        let mut context = lance.image_context(std::slice::from_ref(&image), &options).unwrap();
        for i in order {
            assert_eq!(context.ask(questions[i], &options).unwrap().text, alone[i]);
        }
    }
}

#[test]
fn questions_side_by_side_are_answered_as_one_by_one() {
    let lance = lance();
    let options = AskOptions::default();
    let image = lance.encode_image(&image_of(2), &options).unwrap();
    // Prompts and answers of different lengths; some end while others go on.
    let questions = [
        "What is the license plate number of the car?",
        "Describe this picture.",
        "What is in this image?",
        "Describe this picture.",
    ];
    let mut context = lance.image_context(&[image], &options).unwrap();
    let alone: Vec<Answer> = questions.iter().map(|q| context.ask(q, &options).unwrap()).collect();
    assert!(alone.iter().any(|answer| answer.ids.len() != alone[0].ids.len()));
    let mut pieces = vec![String::new(); questions.len()];
    let take = |index: usize, piece: &str| {
        pieces[index].push_str(piece);
        ControlFlow::Continue(())
    };
    let together = context.ask_all(&questions, &options, take).unwrap();
    for ((one, all), piece) in alone.iter().zip(&together).zip(&pieces) {
        assert_eq!((&one.text, &one.ids, one.finish_reason), (&all.text, &all.ids, all.finish_reason));
        assert_eq!((one.prompt_tokens, piece.trim()), (all.prompt_tokens, all.text.as_str()));
    }
    // The receiver of one answer stops it; the others go on.
    let stop = |index: usize, _: &str| match index {
        1 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    let cut = context.ask_all(&questions, &options, stop).unwrap();
    assert_eq!(cut[1].finish_reason, FinishReason::Interrupted);
    assert_eq!([&cut[0].text, &cut[2].text], [&alone[0].text, &alone[2].text]);
    assert!(context.ask_all(&[], &options, stop).unwrap().is_empty());
    assert!(context.ask_all(&["What?", "<|im_end|>"], &options, stop).is_err());
}

#[test]
fn a_context_goes_on_after_a_refused_question() {
    let lance = lance();
    let options = AskOptions::default();
    let image = lance.encode_image(&image_of(2), &options).unwrap();
    let mut context = lance.image_context(&[image], &options).unwrap();
    assert!(context.ask("<|im_end|>", &options).is_err());
    assert!(context.ask("What?", &at_most(0)).is_err());
    let answer = context.ask(lance_mm_nano::DEMOS[2].question, &options).unwrap();
    assert_eq!(answer.text, "BX62 BFY");
}

#[test]
fn a_chat_lays_out_what_a_whole_conversation_lays_out() {
    let lance = lance();
    let options = at_most(5);
    let image = lance.encode_image(&image_of(2), &options).unwrap();
    let mut chat = lance.chat(&options).unwrap();
    let first = chat.ask(&[Content::Features(&image), Content::Text("Describe.")], &options).unwrap();
    assert_eq!(first.finish_reason, FinishReason::Length);
    assert!(chat.ask(&[], &options).is_err());
    let second = chat.ask(&[Content::Text("And the colour?")], &options).unwrap();
    assert_eq!(chat.turns(), 2);

    let turns = [
        Turn::User(vec![TurnContent::Visual(image.grid()), TurnContent::Text("Describe.")]),
        Turn::Assistant(prompt::Reply::Ids(&first.ids)),
        Turn::User(vec![TurnContent::Text("And the colour?")]),
    ];
    let whole = lance.converse(&turns, std::slice::from_ref(&image), &options, |_| {}).unwrap();
    assert_eq!((whole.ids, whole.prompt_tokens), (second.ids, second.prompt_tokens));
    let text = lance.converse(&turns, &[], &options, |_| {}).unwrap_err().to_string();
    assert_eq!(text, "prompt: expected images of [1x2x6] tokens, found []");
}

#[test]
fn text_comes_in_pieces_and_can_be_stopped() {
    let lance = lance();
    let options = AskOptions::default();
    let image = lance.encode_image(&image_of(4), &options).unwrap();
    let message = [Content::Features(&image), Content::Text("What is in this image?")];
    let mut pieces = Vec::new();
    let whole = lance.answer_stream(&message, &options, |text| pieces.push(text.to_owned())).unwrap();
    assert!(pieces.len() > 3);
    assert_eq!(pieces.concat().trim(), whole.text);

    let mut count = 0;
    let stop = |_: &str| {
        count += 1;
        if count == 2 {
            options.stop_flag.stop();
        }
    };
    let cut = lance.answer_stream(&message, &options, stop).unwrap();
    assert_eq!(cut.finish_reason, FinishReason::Interrupted);
    assert!(whole.text.starts_with(&cut.text) && cut.text.len() < whole.text.len());

    let decode = DecodeOptions { stop_strings: vec!["Colosseum".into()], ..Default::default() };
    let stopped = lance.answer(&message, &decoding(decode)).unwrap();
    assert_eq!(
        (stopped.text.as_str(), stopped.finish_reason),
        ("The image shows the", FinishReason::StopString)
    );
}

#[test]
fn a_seed_repeats_an_answer() {
    let lance = lance();
    let sampling = |seed| crate::Sampling { temperature: 3.0, seed, ..Default::default() };
    let ask = |seed| {
        let decode = DecodeOptions { sampling: sampling(seed), max_new_tokens: 12, ..Default::default() };
        lance.answer(&[Content::Text("Hello")], &decoding(decode)).unwrap()
    };
    let first = ask(None);
    assert_eq!(ask(first.seed).ids, first.ids);
    assert_ne!(ask(Some(1)).ids, ask(Some(2)).ids);
}

#[test]
fn several_images_and_a_video_fit_in_one_question() {
    let lance = lance();
    let options = at_most(3);
    let [a, b] = [0, 3].map(|i| lance.encode_image(&image_of(i), &options).unwrap());
    let clip = Clip::from_frames(vec![image_of(2); 16], 24.0).unwrap();
    let video = lance.encode_video(&clip, &options).unwrap();
    assert_eq!((video.medium(), video.grid().t), (Medium::Video, 3));
    let message = [
        Content::Features(&a),
        Content::Text(" and "),
        Content::Features(&b),
        Content::Features(&video),
        Content::Text("?"),
    ];
    let answer = lance.answer(&message, &options).unwrap();
    let visual = [&a, &b, &video].iter().map(|v| v.grid().count() + 2).sum::<usize>();
    assert!(answer.prompt_tokens > visual && answer.ids.len() <= 3);
    assert!(lance.ask_video(&clip, "", &options).is_ok());
}

#[test]
fn other_images_answered_before_do_not_matter() {
    let lance = lance();
    let ask = |i: usize| {
        lance.ask(&image_of(i), lance_mm_nano::DEMOS[i].question, &AskOptions::default()).unwrap().ids
    };
    let forward: Vec<_> = (0..6).map(ask).collect();
    let backward: Vec<_> = (0..6).rev().map(ask).collect();
    assert!(forward.iter().eq(backward.iter().rev()));
}

#[test]
fn what_cannot_be_asked_is_refused_in_words() {
    let lance = lance();
    let default = AskOptions::default();
    let image = lance.encode_image(&image_of(0), &default).unwrap();
    let ask = |message: &[Content<'_>], options: &AskOptions| {
        lance.answer(message, options).unwrap_err().to_string()
    };
    assert_eq!(ask(&[Content::Text("")], &default), "prompt: expected a question or an image, found neither");
    assert_eq!(ask(&[], &default), "prompt: expected a question or an image, found neither");
    let special = ask(&[Content::Features(&image), Content::Text("<|vision_start|>")], &default);
    assert_eq!(
        special,
        "prompt: expected plain text in the question, found the special token <|vision_start|>"
    );
    let long = ask(&[Content::Text("a")], &at_most(usize::MAX));
    assert!(long.contains("option max_new_tokens: expected at most 128000 tokens in all"), "{long}");
    let stop = ask(
        &[Content::Text("a")],
        &decoding(DecodeOptions { stop_strings: vec![String::new()], ..Default::default() }),
    );
    assert!(stop.contains("option stop"), "{stop}");
    let hot = crate::Sampling { temperature: -1.0, ..Default::default() };
    assert!(
        ask(&[Content::Text("a")], &decoding(DecodeOptions { sampling: hot, ..Default::default() }))
            .contains("option temperature")
    );
    let tall = RgbImage::new(1, 300);
    let native = AskOptions { resize: Some(Resize::native()), ..Default::default() };
    assert!(lance.ask(&tall, "a", &native).is_err());
    assert!(lance.image_context(&[], &default).is_err());
}

#[test]
fn a_stop_flag_ends_every_stage() {
    let lance = lance();
    let options = AskOptions::default();
    let image = lance.encode_image(&image_of(2), &options).unwrap();
    let mut context = lance.image_context(std::slice::from_ref(&image), &options).unwrap();
    let mut chat = lance.chat(&options).unwrap();
    options.stop_flag.stop();
    let message = [Content::Features(&image), Content::Text("What?")];
    assert!(matches!(lance.ask(&image_of(2), "What?", &options), Err(Error::Interrupted)));
    assert!(matches!(lance.encode_image(&image_of(2), &options), Err(Error::Interrupted)));
    assert!(matches!(lance.answer(&message, &options), Err(Error::Interrupted)));
    assert!(matches!(context.ask("What?", &options), Err(Error::Interrupted)));
    assert!(matches!(chat.ask(&message, &options), Err(Error::Interrupted)));
    // Sessions go on where they were.
    let go = AskOptions::default();
    assert_eq!(context.ask(lance_mm_nano::DEMOS[2].question, &go).unwrap().text, "BX62 BFY");
    assert_eq!(chat.ask(&message, &go).unwrap().ids, lance.answer(&message, &go).unwrap().ids);
}

#[test]
fn errors_that_callers_decide_on_are_kinds() {
    let lance = lance();
    let options = AskOptions::default();
    let long = "word ".repeat(200_000);
    assert!(matches!(
        lance.answer(&[Content::Text(&long)], &options),
        Err(Error::PromptTooLong { tokens, limit: 127_999 }) if tokens > 200_000
    ));
    let quoted = [Content::Text("The log says <|im_end|>.")];
    match lance.answer(&quoted, &options) {
        Err(Error::SpecialToken { place: "question", token }) => assert_eq!(token, "<|im_end|>"),
        other => panic!("{other:?}"),
    }
    let plain = AskOptions { special_tokens: SpecialTokens::PlainText, ..at_most(2) };
    assert!(lance.answer(&quoted, &plain).is_ok());
    assert!(matches!(lance.load_generator(), Err(Error::UnsupportedByModel { .. })));
}
