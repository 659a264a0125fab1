//! Lines as netstart(8) reads them. The shell's `read` joins them at backslashes, and then its `eval` interprets quotes
//! and comments.

use crate::gateway::config::ConfigError;
use zeroize::Zeroizing;

/// A line that may be joined of several, which backslashes at their ends continue.
pub(super) struct Logical {
    /// The number of its first line, counted from 1.
    pub(super) number: usize,
    /// The line's text without blanks at its ends. It may end in a comment.
    pub(super) text: Zeroizing<String>,
}

/// Joins lines, and drops empty lines and comments. A backslash continues a comment, too.
pub(super) fn logical(text: &str) -> Vec<Logical> {
    let mut joined: Vec<Logical> = Vec::new();
    let mut goes_on = false;
    for (at, line) in text.lines().enumerate() {
        // The string is made as long as it gets, since one that grew would leave copies of a key behind.
        let earlier = if goes_on { joined.pop() } else { None };
        let (number, begun) = earlier.map_or((at + 1, Zeroizing::default()), |line| (line.number, line.text));
        let mut text = Zeroizing::new(String::with_capacity(begun.len() + line.len()));
        text.push_str(&begun);
        goes_on = false;
        let mut chars = line.chars();
        while let Some(c) = chars.next() {
            match c {
                // `read` removes the backslash, and with it the end of the line or the meaning of the next character.
                '\\' => match chars.next() {
                    Some(plain) => text.push(plain),
                    None => goes_on = true,
                },
                c => text.push(c),
            }
        }
        joined.push(Logical { number, text });
    }
    for line in &mut joined {
        line.text = Zeroizing::new(line.text.trim().to_owned());
    }
    joined.retain(|line| !line.text.is_empty() && !line.text.starts_with('#'));
    joined
}

/// The words of one command.
pub(super) struct Split {
    pub(super) words: Vec<Zeroizing<String>>,
    /// Whether another command follows on the line.
    pub(super) rest: bool,
}

/// Splits the line of this number at blanks into words, up to a comment or the command's end. Quotes hold a word with blanks together.
pub(super) fn split(number: usize, line: &str) -> Result<Split, ConfigError> {
    let wrong = |message: &str| ConfigError { line: number, message: message.into() };
    let mut words = Vec::new();
    let mut word: Option<Zeroizing<String>> = None;
    let mut quote = None;
    let start = || Zeroizing::new(String::with_capacity(line.len()));
    let mut rest = false;
    for c in line.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_with(start);
            }
            (None | Some('"'), '$' | '`') => {
                return Err(wrong(
                    "the shell works out what stands behind `$` or a back quote: expected the value itself",
                ));
            }
            (None, '#') if word.is_none() => break,
            (None, ';' | '&' | '|') => {
                rest = true;
                break;
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_with(start).push(c),
        }
    }
    words.extend(word);
    match quote {
        Some('"') => Err(wrong("a double quote without its end")),
        Some(_) => Err(wrong("a quote without its end")),
        None => Ok(Split { words, rest }),
    }
}
