//! The names of peers. They stand in comments, since wg(8) has no key for them.
//!
//! ```text
//!   # Name = laptop              what ringtun writes
//!   # friendly_name = laptop     what exporters of metrics read
//!   # Client: laptop             what people write
//!   ### Client laptop            what installers write
//!   ### begin laptop ###
//! ```

use super::document::{before, trim};

/// How a name is written. Where a section has several, the earlier of these ways wins.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum NameStyle {
    Name,
    FriendlyName,
    Heading,
}

/// A comment that names a peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct NameComment {
    style: NameStyle,
    pub(super) text: String,
}

impl NameComment {
    /// Whether the comment is a key and a value, and so about a peer wherever it stands.
    pub(super) fn is_pair(&self) -> bool {
        self.style != NameStyle::Heading
    }
}

/// The name that wins. Of two that are written alike, the first does.
pub(super) fn best<'a>(names: impl Iterator<Item = &'a NameComment>) -> Option<&'a NameComment> {
    names.min_by_key(|name| name.style)
}

/// The name in a line's comment.
pub(super) fn name_in(line: &[u8]) -> Option<NameComment> {
    let at = line.iter().position(|&byte| byte == b'#')?;
    let (code, comment) = line.split_at_checked(at)?;
    let marks = comment.iter().take_while(|&&byte| byte == b'#').count();
    let comment = comment.get(marks..)?;
    let (style, text) = match pair(comment) {
        Some(pair) => pair,
        None if trim(code).is_empty() => (NameStyle::Heading, heading(trim(comment), marks)?),
        None => return None,
    };
    let text = String::from_utf8_lossy(text);
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    Some(NameComment { style, text: text.trim().to_owned() }).filter(|name| !name.text.is_empty())
}

fn pair(comment: &[u8]) -> Option<(NameStyle, &[u8])> {
    let key = before(comment, b'=');
    let style = match trim(key) {
        key if key.eq_ignore_ascii_case(b"name") => NameStyle::Name,
        key if key.eq_ignore_ascii_case(b"friendly_name") => NameStyle::FriendlyName,
        _ => return None,
    };
    Some((style, comment.get(key.len() + 1..)?))
}

/// The name in a heading. With fewer than three marks a sentence may begin with the same word.
fn heading(text: &[u8], marks: usize) -> Option<&[u8]> {
    const LOUD: usize = 3;
    let behind = |word: &[u8]| {
        let (head, rest) = text.split_at_checked(word.len())?;
        head.eq_ignore_ascii_case(word).then_some(rest)
    };
    let is_apart = |rest: &&[u8]| rest.first().is_some_and(u8::is_ascii_whitespace) && marks >= LOUD;
    if let Some(rest) = behind(b"client") {
        return rest.strip_prefix(b":").or_else(|| Some(rest).filter(is_apart));
    }
    let enclosed = behind(b"begin").filter(is_apart)?.strip_suffix(b"#")?;
    let end = enclosed.iter().rposition(|&byte| byte != b'#').map_or(0, |at| at + 1);
    enclosed.get(..end)
}

/// The line with another name in the comment, which is a pair.
pub(super) fn renamed(line: &[u8], name: &str) -> Option<Vec<u8>> {
    let mark = line.iter().position(|&byte| byte == b'#')?;
    let equals = line.iter().skip(mark).position(|&byte| byte == b'=')? + mark;
    let end = line.len() - line.iter().rev().take_while(|&&byte| matches!(byte, b'\n' | b'\r')).count();
    Some([line.get(..=equals)?, b" ", name.as_bytes(), line.get(end..)?].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_people_and_other_programs_write_them() {
        let pairs = [
            ("# Name = laptop", "laptop"),
            ("#name=Anna's laptop ", "Anna's laptop"),
            ("PublicKey = x # Name = desk", "desk"),
            ("# friendly_name = laptop", "laptop"),
            ("#friendly_name=laptop of Bob\r\n", "laptop of Bob"),
            ("# Client: phone", "phone"),
            ("### Client phone", "phone"),
            ("### begin phone ###", "phone"),
            ("#### begin phone 2 ####", "phone 2"),
        ];
        for (line, name) in pairs {
            assert_eq!(name_in(line.as_bytes()).map(|name| name.text).as_deref(), Some(name), "{line}");
        }
    }

    #[test]
    fn other_comments_name_nobody() {
        for line in [
            "# Client side",
            "# begin phone #",
            "### begin phone",
            "### Clients",
            "### end phone ###",
            "# Nameless = x",
            "PublicKey = x ### Client y",
            "# Name =",
            "# friendly_json = {}",
            "Name = x",
            "",
        ] {
            assert_eq!(name_in(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn a_pair_wins_over_a_heading_and_ringtuns_own_over_others() {
        let names: Vec<NameComment> = ["### begin a ###", "# friendly_name = b", "# Name = c", "# Name = d"]
            .iter()
            .filter_map(|line| name_in(line.as_bytes()))
            .collect();
        let best = |range: std::ops::Range<usize>| best(names[range].iter()).unwrap().text.clone();
        assert_eq!((best(0..4), best(0..2), best(0..1)), ("c".into(), "b".into(), "a".into()));
    }

    #[test]
    fn a_renamed_line_keeps_the_rest() {
        let new = |line: &str| String::from_utf8(renamed(line.as_bytes(), "new").unwrap()).unwrap();
        assert_eq!(new("# Name = old\n"), "# Name = new\n");
        assert_eq!(new("PublicKey = x= # Name=old\r\n"), "PublicKey = x= # Name= new\r\n");
        assert_eq!(new("##friendly_name=old"), "##friendly_name= new");
    }
}
