//! Tests of the language's rules, of agreement with the programs that defined it, and of properties of every file.

mod dialect;
mod disabled;
mod edit;
mod file;
mod language;
mod parity;
mod properties;
mod reload;

use super::*;

pub(super) const PRIVATE: &str = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";
pub(super) const PUBLIC: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
pub(super) const OTHER: &str = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=";

pub(super) fn parse(text: &str) -> Result<(Config, Vec<Warning>), Vec<ConfigError>> {
    Document::new(text.as_bytes()).parse()
}

pub(super) fn config(text: &str) -> Config {
    parse(text).unwrap_or_else(|errors| panic!("{text}: {errors:?}")).0
}
