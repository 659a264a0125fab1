//! What this program does on this host: the results of a benchmark, as a file, as tables and as a drawing.

mod comparison;
mod plot;
mod report;
mod text;

pub use comparison::BenchComparison;
pub use report::BenchReport;
