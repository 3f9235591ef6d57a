//! Questions before what can't be taken back. Nobody is asked who can't answer.

use std::io::{BufRead, IsTerminal};

use super::prompt;
use crate::error::{Code, Failure, Result};

/// Goes on only if the user says yes. Where nobody sits at a terminal, `unasked` says which option stands for the answer.
pub fn confirm(question: &str, unasked: &str) -> Result<()> {
    at_terminal(unasked)?;
    answered(question, &["y", "Y", "yes"], &mut std::io::stdin().lock())
}

/// Like [`confirm`], for what deserves a second thought: a plain question first, then `word` is to be typed.
pub fn confirm_twice(question: &str, again: &str, word: &str, unasked: &str) -> Result<()> {
    at_terminal(unasked)?;
    let mut input = std::io::stdin().lock();
    answered(question, &["y", "Y", "yes"], &mut input)?;
    answered(again, &[word], &mut input)
}

fn at_terminal(unasked: &str) -> Result<()> {
    if std::io::stdin().is_terminal() { Ok(()) } else { Err(Failure::usage(unasked)) }
}

fn answered(question: &str, wanted: &[&str], input: &mut impl BufRead) -> Result<()> {
    prompt(question);
    let mut answer = String::new();
    input.read_line(&mut answer).map_err(|error| Failure::environment(error.to_string()))?;
    if wanted.contains(&answer.trim()) { Ok(()) } else { Err(Failure::new(Code::Failed, "nothing was changed")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_wanted_answer_counts() {
        for (typed, yes) in [("y\n", true), ("yes\n", true), ("Y", true), ("n\n", false), ("\n", false), ("", false)] {
            assert_eq!(answered("?", &["y", "Y", "yes"], &mut typed.as_bytes()).is_ok(), yes, "{typed:?}");
        }
        let mut twice = "y\nalice\n".as_bytes();
        assert!(answered("?", &["y"], &mut twice).and_then(|()| answered("?", &["alice"], &mut twice)).is_ok());
        assert!(answered("?", &["alice"], &mut "y\n".as_bytes()).is_err(), "yes is not the name");
    }
}
