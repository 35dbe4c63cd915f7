//! `lance-mm chat`, fed from a pipe.

use crate::support::{Files, NANO_BF16, command, lance_mm, run, with_input};

const PLATE: &str = "What is the license plate number of the car?";

#[test]
fn every_line_is_answered_as_ask_answers_it() {
    let files = Files::demos();
    let plate = files.demo(2);
    let questions = [PLATE, "Describe this picture.", "What is in this image?", PLATE];
    let ask = |question| lance_mm(["ask", "-q", "-m", NANO_BF16, &plate, question]).stdout;
    let alone: String = questions.map(ask).concat();
    let input = format!("{}\n\n  \n{}", questions[..2].join("\n"), questions[2..].join("\r\n"));
    let run = with_input(["chat", "-q", "-m", NANO_BF16, &plate], input.as_bytes());
    assert_eq!((run.code, run.stdout, run.stderr.as_str()), (0, alone, ""));
}

#[test]
fn commands_do_what_they_say() {
    let files = Files::demos();
    let input =
        format!("{PLATE}\n/image {}\nDescribe this picture.\n/reset\n/help\n/quit\nWhat?\n", files.demo(5));
    for flags in [["-q"].as_slice(), &["-q", "--history"]] {
        let run = with_input(["chat", &files.demo(2)].iter().chain(flags), input.as_bytes());
        let expected = format!("BX62 BFY\n{}\n", lance_mm_nano::DEMOS[5].answer);
        assert_eq!((run.code, run.stdout), (0, expected), "{flags:?}");
        assert!(run.stderr.starts_with("/image PATH"), "{}", run.stderr);
    }
}

#[test]
fn history_starts_over_after_reset() {
    let files = Files::demos();
    let input = format!("{PLATE}\nAnd now?\n/reset\n{PLATE}\n");
    let run = with_input(["chat", "--history", "-n", "12", &files.demo(2)], input.as_bytes());
    let lines: Vec<&str> = run.stdout.lines().collect();
    assert_eq!((run.code, lines.len(), lines[0], lines[2]), (0, 3, "BX62 BFY", "BX62 BFY"));
    assert!(run.stderr.ends_with("questions forgotten\n"), "{}", run.stderr);
}

#[test]
fn a_bad_line_costs_only_itself() {
    let files = Files::demos();
    let input = [b"a<|im_end|>\n\xff\n/foo\n", PLATE.as_bytes()].concat();
    let run = with_input(["chat", "-q", &files.demo(2)], &input);
    assert_eq!((run.code, run.stdout.as_str()), (1, "\n\n\nBX62 BFY\n"));
    let expected = "error: prompt: expected plain text in the question, found the special token <|im_end|>\n\
                    error: the question is not UTF-8\n\
                    error: unknown command /foo: expected /image PATH, /reset, /help or /quit\n\
                    error: 3 lines could not be answered\n";
    assert_eq!(run.stderr, expected);
}

#[test]
fn nothing_is_answered_about_an_image_that_is_not_the_one_asked_for() {
    let files = Files::demos();
    let input = format!("{PLATE}\n/image gone.png\n{PLATE}\n/image {}\n{PLATE}\n", files.demo(2));
    let run = with_input(["chat", "-q", &files.demo(2)], input.as_bytes());
    assert_eq!((run.code, run.stdout.as_str()), (1, "BX62 BFY\n\nBX62 BFY\n"));
    let expected = "error: gone.png: No such file or directory (os error 2)\n\
                    error: expected an image to ask about, found none after the last /image\n\
                    error: 2 lines could not be answered\n";
    assert_eq!(run.stderr, expected);
}

#[test]
#[cfg(target_os = "linux")]
fn a_line_without_an_end_is_refused() {
    let files = Files::demos();
    let zeros = std::fs::File::open("/dev/zero").unwrap();
    let found = run(command().args(["chat", "-q", &files.demo(2)]).stdin(zeros));
    assert_eq!(found.error(), "standard input: expected lines below 1048576 bytes, found a longer one");
}
