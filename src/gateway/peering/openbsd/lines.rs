//! Lines as netstart(8) reads them: with the shell's `read`, which joins at backslashes, and then `eval`, which knows quotes and
//! comments.

use zeroize::Zeroizing;

/// A line that a backslash at its end may have made of several.
pub(super) struct Logical {
    /// Of its first line; 1 is the first.
    pub(super) number: usize,
    /// Without blanks at its ends, comments still in it.
    pub(super) text: Zeroizing<String>,
}

/// Joins lines, and drops those that say nothing. A comment is continued, too.
pub(super) fn logical(text: &str) -> Vec<Logical> {
    let mut joined: Vec<Logical> = Vec::new();
    let mut goes_on = false;
    for (at, line) in text.lines().enumerate() {
        // Made as long as it gets: a string that grew would leave copies of a key behind.
        let earlier = if goes_on { joined.pop() } else { None };
        let (number, begun) = earlier.map_or((at + 1, Zeroizing::default()), |line| (line.number, line.text));
        let mut text = Zeroizing::new(String::with_capacity(begun.len() + line.len()));
        text.push_str(&begun);
        goes_on = false;
        let mut chars = line.chars();
        while let Some(c) = chars.next() {
            match c {
                // `read` takes the backslash away, and with it the end of the line or the meaning of what follows.
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

/// One command's words.
pub(super) struct Split {
    pub(super) words: Vec<Zeroizing<String>>,
    /// Whether another command follows.
    pub(super) rest: bool,
}

/// Words at blanks, quotes around what holds some, up to a comment or the command's end.
pub(super) fn split(line: &str) -> Result<Split, String> {
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
                return Err(
                    "the shell works out what stands behind `$` or a back quote: expected the value itself"
                        .into(),
                );
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
        Some('"') => Err("a double quote without its end".into()),
        Some(_) => Err("a quote without its end".into()),
        None => Ok(Split { words, rest }),
    }
}
