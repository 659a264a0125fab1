//! The colours of what people read on a terminal.

/// Whether the text is coloured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Paint {
    /// Whether to write escape sequences, as for a terminal.
    pub colours: bool,
}

pub(super) const RESET: &str = "\x1b[0m";
const BOLD: &str = "\x1b[1m";
const RED: &str = "\x1b[31m";
pub(super) const GREEN: &str = "\x1b[32m";
pub(super) const YELLOW: &str = "\x1b[33m";
const CYAN: &str = "\x1b[36m";

impl Paint {
    /// The choice of WG_COLOR_MODE: `always`, `never`, or else colours on a terminal only, where NO_COLOR does not forbid them.
    pub fn chosen(mode: Option<&str>, no_color: bool, terminal: bool) -> Paint {
        Paint { colours: mode == Some("always") || (mode != Some("never") && terminal && !no_color) }
    }

    pub(super) fn code(self, code: &'static str) -> &'static str {
        if self.colours { code } else { "" }
    }

    pub(super) fn wrap(self, code: &'static str, text: &str) -> String {
        format!("{}{text}{}", self.code(code), self.code(RESET))
    }

    /// The text in cyan: what is beside the matter.
    pub fn cyan(self, text: &str) -> String {
        self.wrap(CYAN, text)
    }

    /// The text in green: what is as it should be.
    pub fn green(self, text: &str) -> String {
        self.wrap(GREEN, text)
    }

    /// The text in yellow: what could be better.
    pub fn yellow(self, text: &str) -> String {
        self.wrap(YELLOW, text)
    }

    /// The text in red: what does not work.
    pub fn red(self, text: &str) -> String {
        self.wrap(RED, text)
    }

    /// A heading such as `interface: wg0`.
    pub(super) fn heading(self, colour: &'static str, what: &str, name: &str) -> String {
        let (colour, bold, reset) = (self.code(colour), self.code(BOLD), self.code(RESET));
        format!("{colour}{bold}{what}{reset}: {colour}{name}{reset}\n")
    }

    /// A label such as `  endpoint: `.
    pub(super) fn label(self, what: &str) -> String {
        format!("  {}: ", self.wrap(BOLD, what))
    }
}
