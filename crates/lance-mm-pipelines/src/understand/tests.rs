use lance_mm_image::LoadOptions;

use super::*;
use crate::testing::checkpoint;

fn lance() -> Understanding {
    Understanding::new(checkpoint()).unwrap()
}

fn picture(index: usize) -> RgbImage {
    image::decode(lance_mm_nano::DEMOS[index].png, "demo", &LoadOptions::default()).unwrap()
}

fn quiet(_: &str) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn all_demo_questions_are_answered_right() {
    let lance = lance();
    for (i, demo) in lance_mm_nano::DEMOS.iter().enumerate() {
        let answer = lance.generate(&picture(i), demo.question, &Options::default()).unwrap();
        assert_eq!(answer.text, demo.answer, "{}", demo.file);
        assert_eq!(answer.finish, Finish::StopToken);
        assert_eq!(answer.seed, None);
    }
}

#[test]
fn a_look_answers_as_single_questions_do_in_any_order() {
    let lance = lance();
    let options = Options::default();
    let visual = lance.encode_image(&picture(2), None).unwrap();
    let questions =
        ["What is the license plate number of the car?", "Describe this picture.", "What is in this image?"];
    let alone: Vec<String> =
        questions.iter().map(|q| lance.generate(&picture(2), q, &options).unwrap().text).collect();
    for order in [[0, 1, 2], [2, 0, 1], [1, 1, 0]] {
        let mut look = lance.look(std::slice::from_ref(&visual), &options).unwrap();
        for i in order {
            assert_eq!(look.ask(questions[i], &options, &mut quiet).unwrap().text, alone[i]);
        }
    }
}

#[test]
fn questions_side_by_side_are_answered_as_one_by_one() {
    let lance = lance();
    let options = Options::default();
    let visual = lance.encode_image(&picture(2), None).unwrap();
    // Prompts and answers of different lengths; some end while others go on.
    let questions = [
        "What is the license plate number of the car?",
        "Describe this picture.",
        "What is in this image?",
        "Describe this picture.",
    ];
    let mut look = lance.look(&[visual], &options).unwrap();
    let alone: Vec<Answer> = questions.iter().map(|q| look.ask(q, &options, &mut quiet).unwrap()).collect();
    assert!(alone.iter().any(|answer| answer.ids.len() != alone[0].ids.len()));
    let mut pieces = vec![String::new(); questions.len()];
    let mut take = |index: usize, piece: &str| {
        pieces[index].push_str(piece);
        ControlFlow::Continue(())
    };
    let together = look.ask_all(&questions, &options, &mut take).unwrap();
    for ((one, all), piece) in alone.iter().zip(&together).zip(&pieces) {
        assert_eq!((&one.text, &one.ids, one.finish), (&all.text, &all.ids, all.finish));
        assert_eq!((one.prompt_tokens, piece.trim()), (all.prompt_tokens, all.text.as_str()));
    }
    // The receiver of one answer stops it; the others go on.
    let mut stop = |index: usize, _: &str| match index {
        1 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    let cut = look.ask_all(&questions, &options, &mut stop).unwrap();
    assert_eq!(cut[1].finish, Finish::Interrupted);
    assert_eq!([&cut[0].text, &cut[2].text], [&alone[0].text, &alone[2].text]);
    assert!(look.ask_all(&[], &options, &mut stop).unwrap().is_empty());
    assert!(look.ask_all(&["What?", "<|im_end|>"], &options, &mut stop).is_err());
}

#[test]
fn a_look_goes_on_after_a_refused_question() {
    let lance = lance();
    let options = Options::default();
    let visual = lance.encode_image(&picture(2), None).unwrap();
    let mut look = lance.look(&[visual], &options).unwrap();
    assert!(look.ask("<|im_end|>", &options, &mut quiet).is_err());
    let bad =
        Options { decoding: Decoding { max_new_tokens: 0, ..Default::default() }, ..Default::default() };
    assert!(look.ask("What?", &bad, &mut quiet).is_err());
    let answer = look.ask(lance_mm_nano::DEMOS[2].question, &options, &mut quiet).unwrap();
    assert_eq!(answer.text, "BX62 BFY");
}

#[test]
fn a_chat_lays_out_what_a_whole_conversation_lays_out() {
    let lance = lance();
    let options =
        Options { decoding: Decoding { max_new_tokens: 5, ..Default::default() }, ..Default::default() };
    let visual = lance.encode_image(&picture(2), None).unwrap();
    let mut chat = lance.chat(&options).unwrap();
    let first = chat.ask(&[Part::Visual(&visual), Part::Text("Describe.")], &options, &mut quiet).unwrap();
    assert_eq!(first.finish, Finish::Length);
    assert!(chat.ask(&[], &options, &mut quiet).is_err());
    let second = chat.ask(&[Part::Text("And the colour?")], &options, &mut quiet).unwrap();
    assert_eq!(chat.turns(), 2);

    let turns = [
        Turn::User(vec![Content::Visual(visual.grid()), Content::Text("Describe.")]),
        Turn::Assistant(prompt::Reply::Ids(&first.ids)),
        Turn::User(vec![Content::Text("And the colour?")]),
    ];
    let whole = lance.converse(&turns, std::slice::from_ref(&visual), &options, &mut quiet).unwrap();
    assert_eq!((whole.ids, whole.prompt_tokens), (second.ids, second.prompt_tokens));
    let text = lance.converse(&turns, &[], &options, &mut quiet).unwrap_err().to_string();
    assert_eq!(text, "prompt: expected visuals of [1x2x6] tokens, found []");
}

#[test]
fn text_comes_in_pieces_and_can_be_stopped() {
    let lance = lance();
    let options = Options::default();
    let visual = lance.encode_image(&picture(4), None).unwrap();
    let parts = [Part::Visual(&visual), Part::Text("What is in this image?")];
    let mut pieces = Vec::new();
    let mut take = |piece: &str| {
        pieces.push(piece.to_owned());
        ControlFlow::Continue(())
    };
    let whole = lance.answer(&parts, &options, &mut take).unwrap();
    assert!(pieces.len() > 3);
    assert_eq!(pieces.concat().trim(), whole.text);

    let mut count = 0;
    let mut stop = |_: &str| {
        count += 1;
        if count == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let cut = lance.answer(&parts, &options, &mut stop).unwrap();
    assert_eq!(cut.finish, Finish::Interrupted);
    assert!(whole.text.starts_with(&cut.text) && cut.text.len() < whole.text.len());

    let decoding = Decoding { stop: vec!["Colosseum".into()], ..Default::default() };
    let stopped = lance.answer(&parts, &Options { decoding, ..Default::default() }, &mut quiet).unwrap();
    assert_eq!((stopped.text.as_str(), stopped.finish), ("The image shows the", Finish::StopString));
}

#[test]
fn a_seed_repeats_an_answer() {
    let lance = lance();
    let sampling = |seed| crate::Sampling { temperature: 3.0, seed, ..Default::default() };
    let ask = |seed| {
        let decoding = Decoding { sampling: sampling(seed), max_new_tokens: 12, ..Default::default() };
        let options = Options { decoding, ..Default::default() };
        lance.answer(&[Part::Text("Hello")], &options, &mut quiet).unwrap()
    };
    let first = ask(None);
    assert_eq!(ask(first.seed).ids, first.ids);
    assert_ne!(ask(Some(1)).ids, ask(Some(2)).ids);
}

#[test]
fn several_pictures_and_a_video_fit_in_one_question() {
    let lance = lance();
    let options =
        Options { decoding: Decoding { max_new_tokens: 3, ..Default::default() }, ..Default::default() };
    let (a, b) =
        (lance.encode_image(&picture(0), None).unwrap(), lance.encode_image(&picture(3), None).unwrap());
    let clip = Clip::from_frames(vec![picture(2); 16], 24.0).unwrap();
    let video = lance.encode_video(&clip, None).unwrap();
    assert_eq!((video.medium(), video.grid().t), (Medium::Video, 3));
    let parts =
        [Part::Visual(&a), Part::Text(" and "), Part::Visual(&b), Part::Visual(&video), Part::Text("?")];
    let answer = lance.answer(&parts, &options, &mut quiet).unwrap();
    let visual = [&a, &b, &video].iter().map(|v| v.grid().count() + 2).sum::<usize>();
    assert!(answer.prompt_tokens > visual && answer.ids.len() <= 3);
    assert!(lance.generate_video(&clip, "", &options).is_ok());
}

#[test]
fn other_pictures_answered_before_do_not_matter() {
    let lance = lance();
    let ask = |i: usize| {
        lance.generate(&picture(i), lance_mm_nano::DEMOS[i].question, &Options::default()).unwrap().ids
    };
    let forward: Vec<_> = (0..6).map(ask).collect();
    let backward: Vec<_> = (0..6).rev().map(ask).collect();
    assert!(forward.iter().eq(backward.iter().rev()));
}

#[test]
fn what_cannot_be_asked_is_refused_in_words() {
    let lance = lance();
    let visual = lance.encode_image(&picture(0), None).unwrap();
    let ask = |parts: &[Part<'_>], options: &Options| {
        lance.answer(parts, options, &mut quiet).unwrap_err().to_string()
    };
    let default = Options::default();
    assert_eq!(ask(&[Part::Text("")], &default), "prompt: expected a question or a picture, found neither");
    assert_eq!(ask(&[], &default), "prompt: expected a question or a picture, found neither");
    let special = ask(&[Part::Visual(&visual), Part::Text("<|vision_start|>")], &default);
    assert_eq!(
        special,
        "prompt: expected plain text in the question, found the special token <|vision_start|>"
    );
    let with = |decoding| Options { decoding, ..Default::default() };
    let long = ask(&[Part::Text("a")], &with(Decoding { max_new_tokens: usize::MAX, ..Default::default() }));
    assert!(long.contains("option max_new_tokens: expected at most 128000 tokens in all"), "{long}");
    let stop = ask(&[Part::Text("a")], &with(Decoding { stop: vec![String::new()], ..Default::default() }));
    assert!(stop.contains("option stop"), "{stop}");
    let hot = crate::Sampling { temperature: -1.0, ..Default::default() };
    assert!(
        ask(&[Part::Text("a")], &with(Decoding { sampling: hot, ..Default::default() }))
            .contains("option temperature")
    );
    let tall = RgbImage::new(1, 300);
    let native = Options { resize: Some(Resize::native()), ..Default::default() };
    assert!(lance.generate(&tall, "a", &native).is_err());
    assert!(lance.look(&[], &default).is_err());
}
