//! A file as lines: lossless, and read as wg-quick(8) and wg(8) read them.
//!
//! Two programs read a wg-quick file. wg-quick cuts a line at `#`, unless it is a hook's command. It takes what stands
//! before the first `=`, trimmed, for the key. It keeps the interface's lines that it knows, and passes all others to
//! wg as they are. wg removes *all* white space from a line, cuts at `#`, and compares without regard to case:
//! `[ Peer ]` and `Public Key = …` are good there.

use std::borrow::Cow;
use std::fmt;
use zeroize::Zeroizing;

/// The lines of a file, each with its end. They are zeroized on drop and hidden from `Debug`.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Document {
    pub(super) lines: Vec<Zeroizing<Vec<u8>>>,
}

/// What wg-quick and wg make of a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LineKind {
    /// A line of white space, a comment or both.
    Blank,
    /// The header `[Interface]`.
    Interface,
    /// The header `[Peer]`.
    Peer,
    /// A line whose key wg-quick takes out.
    Quick(&'static str),
    /// A line that is left to wg: one with a key of wg's, or an error.
    Wg,
}

/// The keys of wg-quick(8) in `[Interface]`.
pub(super) const QUICK_KEYS: [&str; 9] =
    ["Address", "MTU", "DNS", "Table", "PreUp", "PreDown", "PostUp", "PostDown", "SaveConfig"];
/// The keys of wg-quick(8) whose values are commands.
pub(super) const HOOK_KEYS: [&str; 4] = ["PreUp", "PreDown", "PostUp", "PostDown"];
/// The keys of wg(8) in `[Interface]`.
pub(super) const INTERFACE_KEYS: [&str; 3] = ["ListenPort", "FwMark", "PrivateKey"];
/// The keys of wg(8) in `[Peer]`.
pub(super) const PEER_KEYS: [&str; 5] =
    ["Endpoint", "PublicKey", "AllowedIPs", "PersistentKeepalive", "PresharedKey"];

/// In which section a reader of the lines is. The two programs need not agree on it.
#[derive(Clone, Copy, Default)]
pub(super) struct LineClassifier {
    /// Whether wg-quick is in `[Interface]`, outside which it knows no keys.
    quick_interface: bool,
}

impl LineClassifier {
    /// Classifies the next line.
    pub(super) fn kind(&mut self, line: &[u8]) -> LineKind {
        let (key, _) = quick_pair(line);
        if key.starts_with(b"[") {
            self.quick_interface = key.eq_ignore_ascii_case(b"[Interface]");
        }
        if self.quick_interface
            && let Some(known) = QUICK_KEYS.iter().find(|known| key.eq_ignore_ascii_case(known.as_bytes()))
        {
            return LineKind::Quick(known);
        }
        let cleaned = wg_cleaned(line);
        match cleaned.to_ascii_lowercase().as_slice() {
            b"" => LineKind::Blank,
            b"[interface]" => LineKind::Interface,
            b"[peer]" => LineKind::Peer,
            _ => LineKind::Wg,
        }
    }
}

/// Key and value as wg-quick sees them. In a line without a `=` both are the whole line.
pub(super) fn quick_pair(line: &[u8]) -> (&[u8], &[u8]) {
    let code = before(line, b'#');
    let value =
        code.iter().position(|&byte| byte == b'=').map_or(code, |at| code.get(at + 1..).unwrap_or_default());
    (trim(before(code, b'=')), trim(value))
}

/// A hook's command: what follows the first `=`. A `#` belongs to it and is the shell's to read, as for wg-quick since
/// 1.0.20250521.
pub(super) fn hook_command(line: &[u8]) -> &[u8] {
    match before(line, b'#').iter().position(|&byte| byte == b'=') {
        Some(at) => trim(line.get(at + 1..).unwrap_or_default()),
        None => quick_pair(line).1,
    }
}

/// The line as wg sees it. It may hold a secret, and so is zeroized on drop.
pub(super) fn wg_cleaned(line: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut cleaned = Zeroizing::new(Vec::with_capacity(line.len()));
    cleaned.extend(before(line, b'#').iter().copied().filter(|&byte| !is_space(byte)));
    cleaned
}

pub(super) fn before(line: &[u8], mark: u8) -> &[u8] {
    line.split(|&byte| byte == mark).next().unwrap_or_default()
}

/// `isspace` in the C locale: Rust's `is_ascii_whitespace` lacks the vertical tab.
pub(super) fn is_space(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == 0x0b
}

pub(super) fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [first, rest @ ..] = bytes
        && is_space(*first)
    {
        bytes = rest;
    }
    while let [rest @ .., last] = bytes
        && is_space(*last)
    {
        bytes = rest;
    }
    bytes
}

impl Document {
    /// Splits a file into lines. bash drops NUL bytes; here they stay, and are errors where they matter.
    pub fn new(bytes: &[u8]) -> Document {
        let lines = bytes.split_inclusive(|&byte| byte == b'\n').map(|line| Zeroizing::new(line.to_vec()));
        Document { lines: lines.collect() }
    }

    /// The document without the lines of private and preshared keys, for whoever has no use for them.
    pub fn without_keys(mut self) -> Document {
        let names_a_key = |line: &[u8]| {
            // Those of a peer that is out of use stand in a comment.
            let marks = line.iter().take_while(|&&byte| byte == b'#' || is_space(byte)).count();
            let cleaned = wg_cleaned(line.get(marks..).unwrap_or_default());
            let name = before(&cleaned, b'=');
            name.eq_ignore_ascii_case(b"PrivateKey") || name.eq_ignore_ascii_case(b"PresharedKey")
        };
        self.lines.retain(|line| !names_a_key(line));
        self
    }

    /// The file's bytes. Those of a document that was not edited are the bytes that it was made of.
    pub fn bytes(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(self.lines.iter().map(|line| line.len()).sum()));
        for line in &self.lines {
            bytes.extend_from_slice(line);
        }
        bytes
    }

    /// Each line with its kind.
    pub(super) fn kinds(&self) -> impl Iterator<Item = (&[u8], LineKind)> {
        let mut reader = LineClassifier::default();
        self.lines.iter().map(move |line| (line.as_slice(), reader.kind(line)))
    }

    /// What `wg-quick strip` prints: the lines that are not wg-quick's own, without blanks at their ends, and one empty
    /// line.
    pub fn strip(&self) -> Zeroizing<Vec<u8>> {
        // bash's `read` trims what $IFS holds; a carriage return is not in it.
        let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
        let mut out =
            Zeroizing::new(Vec::with_capacity(self.lines.iter().map(|line| line.len()).sum::<usize>() + 2));
        for (line, kind) in self.kinds() {
            if matches!(kind, LineKind::Quick(_)) {
                continue;
            }
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            let start = line.iter().position(|byte| !blank(byte)).unwrap_or(line.len());
            let end = line.iter().rposition(|byte| !blank(byte)).map_or(start, |at| at + 1);
            out.extend_from_slice(line.get(start..end).unwrap_or_default());
            out.push(b'\n');
        }
        out.push(b'\n');
        out
    }
}

impl fmt::Debug for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Document({} lines)", self.lines.len())
    }
}

/// A value as it may be quoted in a message: short, printable, and never what may be a key.
pub(super) fn quoted(value: &[u8]) -> Cow<'static, str> {
    const LONGEST: usize = 60;
    let base64 = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    // A key in base64 has 43 such characters. A piece of 20 is no address, name or number that makes sense.
    if value.split(|byte| !base64(byte)).any(|run| run.len() >= 20) {
        return Cow::Borrowed("the value");
    }
    let text = String::from_utf8_lossy(value);
    let short: String = text.chars().take(LONGEST).collect();
    let more = if short.len() < text.len() { "…" } else { "" };
    Cow::Owned(format!("`{}{more}`", short.escape_debug()))
}
