//! Which peer a person means: by its name, its public key, or the beginning of that.

use crate::crypto::x25519::PublicKey;
use crate::gateway::Failure;

/// Fewest characters of a key that name a peer.
const LEAST_PREFIX: usize = 4;
/// Most candidates that an error lists.
const MOST_LISTED: usize = 5;

/// A peer that may be meant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// The peer's public key.
    pub key: PublicKey,
    /// The peer's name, if it has one.
    pub name: Option<String>,
}

/// The one peer that `given` means. A whole key is taken also where no candidate has it.
///
/// # Errors
///
/// Where it means none of the candidates, or more than one.
pub fn select(given: &str, candidates: &[Candidate]) -> Result<Candidate, Failure> {
    if let Ok(key) = given.parse::<PublicKey>() {
        let known = candidates.iter().find(|candidate| candidate.key == key).cloned();
        return Ok(known.unwrap_or(Candidate { key, name: None }));
    }
    let named = |same: &dyn Fn(&str) -> bool| -> Vec<&Candidate> {
        candidates.iter().filter(|candidate| candidate.name.as_deref().is_some_and(same)).collect()
    };
    let is_prefix = given.len() >= LEAST_PREFIX;
    let by_key =
        candidates.iter().filter(|candidate| is_prefix && candidate.key.to_base64().starts_with(given));
    let ways =
        [named(&|name| name == given), named(&|name| name.eq_ignore_ascii_case(given)), by_key.collect()];
    match ways.into_iter().find(|found| !found.is_empty()).unwrap_or_default().as_slice() {
        [one] => Ok((*one).clone()),
        [] => Err(Failure::new(format!(
            "no peer is called `{given}`, and no public key begins so: expected {}",
            listed(candidates.iter().collect())
        ))),
        several => Err(Failure::new(format!(
            "`{given}` means more than one peer: expected a whole public key: {}",
            several.iter().take(MOST_LISTED).map(|one| one.key.to_base64()).collect::<Vec<_>>().join(", ")
        ))),
    }
}

/// Some candidates, as they may be given.
fn listed(candidates: Vec<&Candidate>) -> String {
    let words: Vec<String> = candidates
        .iter()
        .take(MOST_LISTED)
        .map(|one| one.name.clone().unwrap_or_else(|| one.key.to_base64()))
        .collect();
    match (words.is_empty(), candidates.len() > MOST_LISTED) {
        (true, _) => "a whole public key, as there are no peers".to_owned(),
        (false, false) => words.join(", "),
        (false, true) => format!("{}, …", words.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates() -> Vec<Candidate> {
        let one = |seed: u8, name: Option<&str>| Candidate {
            key: PublicKey([seed; 32]),
            name: name.map(str::to_owned),
        };
        vec![one(1, Some("laptop")), one(2, Some("Laptop")), one(3, Some("office")), one(0x10, None)]
    }

    #[test]
    fn a_peer_is_meant_by_name_key_and_the_beginning_of_its_key() {
        let candidates = candidates();
        let means = |given: &str| select(given, &candidates).map(|one| one.key.0[0]);
        assert_eq!(means("laptop").unwrap(), 1);
        assert_eq!(means("Laptop").unwrap(), 2);
        assert_eq!(means("OFFICE").unwrap(), 3);
        let key = PublicKey([0x10; 32]).to_base64();
        assert_eq!(means(&key).unwrap(), 0x10);
        assert_eq!(means(&key[..4]).unwrap(), 0x10);
        assert_eq!(means(&PublicKey([9; 32]).to_base64()).unwrap(), 9, "a whole key needs no candidate");
    }

    #[test]
    fn what_means_none_or_several_is_refused_with_what_would_do() {
        let candidates = candidates();
        let error = |given: &str| select(given, &candidates).unwrap_err().to_string();
        assert!(error("LAPTOP").contains("more than one"), "{}", error("LAPTOP"));
        assert!(error("phone").contains("laptop, Laptop, office, "), "{}", error("phone"));
        assert!(error("EBA").contains("no peer"), "too short for a key: {}", error("EBA"));
        assert!(select("x", &[]).unwrap_err().to_string().contains("there are no peers"));
    }
}
