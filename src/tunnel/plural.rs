//! Numbers of things, as a sentence has them.

/// The count with its noun, whose plural ends in `s`: `1 worker`, `2 workers`.
pub fn counted(count: usize, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_singular_and_none_is_not() {
        assert_eq!([0, 1, 2].map(|count| counted(count, "peer")), ["0 peers", "1 peer", "2 peers"]);
    }
}
