//! What is not wg-quick's language, and what it is instead: other encodings, comment marks and separators, and the
//! keys of a related program.

use super::ConfigError;
use super::document::{INTERFACE_KEYS, PEER_KEYS, QUICK_KEYS, trim};
use zeroize::Zeroizing;

/// U+FEFF in UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// Bytes at the file's beginning from which its encoding is judged.
const SAMPLE_LEN: usize = 64;
/// AmneziaWG's keys in `[Interface]`, in lower case. They change the messages, so that the other end must speak
/// AmneziaWG as well.
const AMNEZIA_KEYS: [&str; 20] = [
    "jc", "jmin", "jmax", "s1", "s2", "s3", "s4", "h1", "h2", "h3", "h4", "i1", "i2", "i3", "i4", "i5", "j1",
    "j2", "j3", "itime",
];

/// The error of a file that is in UTF-16.
pub(super) fn encoding(lines: &[Zeroizing<Vec<u8>>]) -> Option<ConfigError> {
    let sample: Vec<u8> = lines.iter().flat_map(|line| line.iter().copied()).take(SAMPLE_LEN).collect();
    let zeros = |parity: usize| sample.iter().skip(parity).step_by(2).filter(|&&byte| byte == 0).count();
    let marked = sample.starts_with(b"\xff\xfe") || sample.starts_with(b"\xfe\xff");
    let is_wide = sample.len() >= 4 && (0..2).any(|parity| zeros(parity) * 4 > sample.len());
    (marked || is_wide).then(|| ConfigError {
        line: 1,
        message: "the file is in UTF-16, as Windows' editors and PowerShell write it: expected UTF-8, which \
                  `iconv -f UTF-16 -t UTF-8` makes of it"
            .into(),
    })
}

/// What follows a byte order mark at the file's beginning, and the error that the mark is.
pub(super) fn behind_mark(first: &[u8]) -> Option<(&[u8], ConfigError)> {
    let message = "a byte order mark (BOM, U+FEFF) stands before the text, where no editor shows it: expected UTF-8 without one; \
                   sed -i '1s/^\\xef\\xbb\\xbf//' FILE removes it";
    let rest = first.strip_prefix(BYTE_ORDER_MARK)?;
    Some((rest, ConfigError { line: 1, message: message.into() }))
}

/// What to say of a key of AmneziaWG's. The first of a file speaks for all.
pub(super) fn amnezia(key: &[u8]) -> Option<String> {
    AMNEZIA_KEYS.iter().any(|known| key.eq_ignore_ascii_case(known.as_bytes())).then(|| {
        format!(
            "{} and its like (Jc, S1, H1 …) are AmneziaWG's, which is another protocol on the wire: expected a file for WireGuard; \
             without these lines it works only where the peer has none either",
            String::from_utf8_lossy(key)
        )
    })
}

/// What an unknown line was probably meant to be. The answer never repeats a value.
pub(super) fn of_line(line: &[u8]) -> Option<String> {
    let line = trim(line);
    if let Some(mark) = [";", "//"].into_iter().find(|mark| line.starts_with(mark.as_bytes())) {
        return Some(format!("`{mark}` begins no comment here: expected `#`"));
    }
    let end = line.iter().position(|byte| matches!(byte, b'=' | b':'));
    let (left, separator) = end.map_or((line, None), |at| (&line[..at], line.get(at)));
    match separator {
        Some(b':') => {
            let known = known(trim(left))?;
            Some(format!("expected `{known} = VALUE`, with `=` instead of `:`"))
        }
        _ => {
            // Where the `=` is missing, the first word is the key.
            let word = line.split(u8::is_ascii_whitespace).next().unwrap_or_default();
            let known = known(word).filter(|_| !line.contains(&b'=') || word.len() < trim(left).len())?;
            Some(format!("expected `{known} = VALUE`: the `=` is missing"))
        }
    }
}

fn known(key: &[u8]) -> Option<&'static str> {
    let all = INTERFACE_KEYS.into_iter().chain(QUICK_KEYS).chain(PEER_KEYS);
    all.into_iter().find(|known| key.eq_ignore_ascii_case(known.as_bytes()))
}

/// What may be the matter with a value that is refused, to be put behind what was expected. wg removes all blanks, so
/// that two addresses without a comma between them are one word.
pub(super) fn of_value(key: &str, line: &[u8]) -> &'static str {
    let value = line.splitn(2, |&byte| byte == b'=').nth(1).unwrap_or_default();
    let code = value.split(|&byte| byte == b'#').next().unwrap_or_default();
    if code.contains(&b';') || code.windows(2).any(|pair| pair == b"//") {
        return "; a comment begins with `#`";
    }
    let mut words = code.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).peekable();
    while let Some(word) = words.next() {
        let apart = word.ends_with(b",") || words.peek().is_none_or(|next| next.starts_with(b","));
        if key == "AllowedIPs" && !apart {
            return "; a comma is missing between two of them";
        }
    }
    ""
}
