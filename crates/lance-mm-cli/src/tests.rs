//! Help of all commands, and commands in the documentation.

use std::fs;
use std::path::{Path, PathBuf};

use clap::CommandFactory;

use super::*;

/// The program and its commands, with their names.
fn commands() -> Vec<(String, clap::Command)> {
    let mut cli = Cli::command();
    cli.build();
    let mut commands = vec![("lance-mm".to_owned(), cli)];
    let mut at = 0;
    while at < commands.len() {
        let (name, command) = commands[at].clone();
        let inner = command.get_subcommands().filter(|command| command.get_name() != "help");
        commands.extend(inner.map(|command| (format!("{name} {}", command.get_name()), command.clone())));
        at += 1;
    }
    commands
}

#[test]
fn every_help_has_examples_and_all_of_them_parse() {
    for (name, command) in commands() {
        for help in [command.get_after_help(), command.get_after_long_help()].into_iter().flatten() {
            let help = help.to_string();
            let calls: Vec<_> = help.lines().filter_map(|line| call(line.strip_prefix("  ")?)).collect();
            assert!(!calls.is_empty(), "{name}: {help}");
            for call in calls {
                let parsed = Cli::try_parse_from(&call);
                assert!(parsed.is_ok(), "{name}: {call:?}: {}", parsed.err().unwrap());
            }
        }
        assert!(command.get_after_help().is_some(), "{name}");
    }
}

#[test]
fn short_help_fits_a_screen() {
    for (name, command) in commands() {
        let help = command.term_width(100).render_help().to_string();
        let lines = help.lines().count();
        assert!(lines <= 45, "{name} -h has {lines} lines:\n{help}");
    }
    let help = Cli::command().term_width(100).render_long_help().to_string();
    assert!(help.lines().count() <= 45, "lance-mm --help:\n{help}");
}

#[test]
fn every_command_in_the_documentation_parses() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    // A packaged copy of this crate has no documentation beside it.
    if !root.join("docs").exists() {
        return;
    }
    let (mut found, mut wrong) = (0, Vec::new());
    for page in pages(&root) {
        let text = fs::read_to_string(&page).unwrap();
        let mut in_code = false;
        for line in text.lines() {
            let is_fence = line.starts_with("```");
            in_code ^= is_fence;
            let code = if in_code && !is_fence { Some(line) } else { line.strip_prefix("    ") };
            let code = code.map(|code| code.strip_prefix("$ ").unwrap_or(code));
            if let Some(call) = code.and_then(call).filter(|call| call.last().is_none_or(|word| word != "\\"))
            {
                found += 1;
                // The command is on its way.
                if call.get(1).is_some_and(|command| command == "convert") {
                    continue;
                }
                if let Err(error) = Cli::try_parse_from(&call) {
                    wrong.push(format!("{}: {call:?}: {error}", page.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(found > 40, "found only {found}");
}

/// The README, the pages of `docs` and the guide.
fn pages(root: &Path) -> Vec<PathBuf> {
    let folder = |folder: &str| {
        let entries = fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.extension().is_some_and(|end| end == "md")).collect::<Vec<_>>()
    };
    [folder("docs"), folder("docs/guide/src"), vec![root.join("README.md")]].concat()
}

/// The words of the program's call in a line of shell that is one, without what follows in a pipe.
fn call(line: &str) -> Option<Vec<String>> {
    let words = words(line);
    let start = words.iter().position(|word| word == "lance-mm")?;
    let is_command = |word: &String| word == "|" || word == "&&" || word == "lance-mm" || word == "-s";
    if start > 0 && !words[..start].iter().any(is_command) {
        return None;
    }
    let is_part = |word: &String| !matches!(word.as_str(), "|" | ">" | "#" | "&&");
    Some(words.into_iter().skip(start).take_while(is_part).collect())
}

fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    for c in line.chars() {
        match quote {
            None if c == ' ' => words.push(std::mem::take(&mut word)),
            None if c == '"' || c == '\'' => quote = Some(c),
            Some(open) if c == open => quote = None,
            _ => word.push(c),
        }
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    words
}
