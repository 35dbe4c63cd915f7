//! `lance-mm chat`: several questions about the same images, which are encoded once.

mod session;

use std::ffi::OsString;
use std::io::{self, BufRead, IsTerminal, Read};
use std::path::Path;

use anyhow::{Result, bail};
use lance_mm::{AskOptions, StopFlag};

use crate::args::{AnswerArgs, ImageArgs, ModelArgs};
use crate::inputs;
use crate::interrupt::StopOnInterrupt;
use crate::model::{self, Model};
use crate::output::{self, Hints, StdoutError, complain, plural};
use crate::stream::Stream;
use session::Session;

const EXAMPLES: &str = "\
Examples:
  lance-mm chat photo.jpg
  lance-mm chat --model mlx-community/Lance-3B-AWQ-INT4 --resize native invoice.png
  printf 'What is the total?\\nWho sent it?\\n' | lance-mm chat invoice.png";

const LONG_EXAMPLES: &str = "\
Examples:
  lance-mm chat photo.jpg
  lance-mm chat --model mlx-community/Lance-3B-AWQ-INT4 --resize native invoice.png
  printf 'What is the total?\\nWho sent it?\\n' | lance-mm chat invoice.png

Commands: /image PATH replaces the image, /reset forgets the questions so far (with --history), /help, /quit;
Ctrl-C ends an answer. When standard input is no terminal, each line is a question and each answer a line, an empty
one where there is none; after an /image that failed, questions have no answer until another succeeds.";

const HELP: &str = "\
/image PATH  replace the image
/reset       forget the questions so far (with --history)
/help        this help
/quit        leave (so does Ctrl-D)";

/// Most bytes of a line of standard input, which may have no end.
const MAX_LINE: u64 = 1 << 20;

/// Ask several questions about the same images, which are encoded once
///
/// Every question is answered alone, as by ask, unless --history is given.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, after_long_help = LONG_EXAMPLES)]
pub(crate) struct Args {
    /// Image or video files
    #[arg(value_name = "IMAGE", required = true, value_hint = clap::ValueHint::FilePath)]
    images: Vec<OsString>,
    /// Keep questions and answers in the context; the model was trained on single turns and may drift
    #[arg(long)]
    history: bool,
    /// No hints on standard error
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    image: ImageArgs,
    #[command(flatten)]
    answer: AnswerArgs,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let hints = Hints::new(args.quiet);
    if args.images.iter().any(|path| path == "-") {
        return Err(output::usage("chat", "standard input is for questions here, an image file is required"));
    }
    let options = args.answer.options(&args.image, hints)?;
    let inputs = inputs::read_all("chat", &args.images, &args.image, hints)?;
    let model = model::load_with(&args.model, hints)?;
    inputs::warn(&inputs, &model.lance, hints);
    let session = {
        let _busy = hints.busy("encoding the image");
        Session::new(&model.lance, inputs, &options, args.history)?
    };
    let interactive = io::stdin().is_terminal();
    if interactive {
        hints.note("ask about the image; /help lists commands");
    }
    Loop { args, hints, options, model: &model, session, interactive, blind: false, failed: 0 }.run()
}

/// Loop over lines of standard input.
struct Loop<'a> {
    args: &'a Args,
    hints: Hints,
    options: AskOptions,
    model: &'a Model,
    session: Session,
    interactive: bool,
    /// The last /image failed, so that there is no image to ask about.
    blind: bool,
    /// Lines that ended in an error.
    failed: usize,
}

enum Next {
    Line,
    End,
}

impl Loop<'_> {
    fn run(mut self) -> Result<()> {
        let mut input = io::stdin().lock();
        let mut line = Vec::new();
        loop {
            if self.interactive {
                output::show_prompt();
            }
            line.clear();
            match input.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
                Ok(0) => break,
                Ok(read) if read as u64 == MAX_LINE && !line.ends_with(b"\n") => {
                    bail!("standard input: expected lines below {MAX_LINE} bytes, found a longer one")
                }
                Ok(_) => {}
                Err(error) => bail!("standard input: {error}"),
            }
            match self.line(&line) {
                Ok(Next::Line) => {}
                Ok(Next::End) => return self.end(),
                Err(error) if error.is::<StdoutError>() => return Err(error),
                Err(error) => {
                    complain(&error);
                    self.failed += 1;
                }
            }
        }
        if self.interactive {
            output::say("");
        }
        self.end()
    }

    /// An error for scripts if any line failed; a person has seen the errors.
    fn end(&self) -> Result<()> {
        match self.failed {
            0 => Ok(()),
            _ if self.interactive => Ok(()),
            n => bail!("{} could not be answered", plural(n, "line")),
        }
    }

    fn line(&mut self, line: &[u8]) -> Result<Next> {
        let Ok(line) = std::str::from_utf8(line) else {
            self.no_answer()?;
            bail!("the question is not UTF-8");
        };
        match line.trim() {
            "" => {}
            "/quit" | "/exit" => return Ok(Next::End),
            "/help" => output::say(HELP),
            "/reset" => {
                self.session.reset(&self.options)?;
                self.hints.note(if self.args.history {
                    "questions forgotten"
                } else {
                    "every question is independent already"
                });
            }
            command if command.starts_with('/') => self.command(command)?,
            question => self.ask(question)?,
        }
        Ok(Next::Line)
    }

    fn command(&mut self, command: &str) -> Result<()> {
        let Some(path) = command.strip_prefix("/image ").map(str::trim) else {
            self.no_answer()?;
            bail!("unknown command {command}: expected /image PATH, /reset, /help or /quit");
        };
        // A person reads that the previous image stays; a script would take answers about it for others.
        self.blind = !self.interactive;
        self.show(path)?;
        self.blind = false;
        Ok(())
    }

    /// Replaces the image.
    fn show(&mut self, path: &str) -> Result<()> {
        let input = inputs::read(Path::new(path).as_os_str(), &self.args.image, self.hints)?;
        let busy = self.hints.busy("encoding the image");
        self.session = Session::new(&self.model.lance, vec![input], &self.options, self.args.history)?;
        drop(busy);
        self.hints.note(&format!("image: {path}"));
        Ok(())
    }

    fn ask(&mut self, question: &str) -> Result<()> {
        if self.blind {
            self.no_answer()?;
            bail!("expected an image to ask about, found none after the last /image");
        }
        let mut stream = Stream::stdout(!self.interactive);
        let mut busy = Some(self.hints.busy("reading the prompt"));
        let stop_flag = StopFlag::new();
        self.options.stop_flag = stop_flag.clone();
        let _interrupt = self.interactive.then(|| StopOnInterrupt::new(&stop_flag));
        let answer = self.session.ask(question, &self.options, |text| {
            busy.take();
            if stream.push(text).is_break() {
                stop_flag.stop();
            }
        });
        drop(busy);
        match answer {
            Ok(_) => stream.finish(),
            Err(error) => {
                self.no_answer()?;
                Err(error)
            }
        }
    }

    /// Prints an empty line for a script, so that lines of answers match those of questions.
    fn no_answer(&self) -> Result<()> {
        if self.interactive { Ok(()) } else { output::print("\n") }
    }
}
